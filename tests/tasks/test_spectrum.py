"""The cells of a network join to a curve that falls, whatever the order they come in."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations

import pytest
import torch

from tasks.measuring.outcomes import Outcomes, Threat
from tasks.measuring.spectrum import spectrum

ATTACKS = ("pgd", "square")


def cell(epsilon: float, broken_by: list[int | None], norm: str = "linf") -> Outcomes:
    """Examples of class 0: wrong unattacked where None, standing where -1, else broken by this attack."""
    wrong = torch.tensor([by is None for by in broken_by])
    by = torch.tensor([-1 if by is None else by for by in broken_by])
    at = torch.where(wrong, 0.0, torch.where(by < 0, torch.inf, torch.tensor(epsilon)))
    count = len(by)
    return Outcomes(
        Threat(norm, (epsilon,), ATTACKS),  # type: ignore[arg-type]
        indices=torch.arange(count) * 7,
        labels=torch.zeros(count, dtype=torch.int64),
        predictions=wrong.long(),
        confidences=torch.full((count,), 0.8),
        losses=torch.full((count,), 0.5),
        broken_at=at,
        broken_by=by,
        distances=torch.where(at.isfinite(), at * 0.9, at),
    )


SMALL = cell(0.1, [None, 0, -1, -1, 1, -1])
MIDDLE = cell(0.2, [None, -1, 1, -1, -1, -1])  # stands at 0.2 what fell at 0.1: the attacks contradict themselves
LARGE = cell(0.4, [None, -1, -1, 0, 0, -1])


def test_what_is_broken_at_a_radius_is_broken_at_every_larger_one() -> None:
    row = spectrum([SMALL, MIDDLE, LARGE])
    assert row.threat == Threat("linf", (0.1, 0.2, 0.4), ATTACKS)
    assert row.broken_at.tolist() == pytest.approx([0, 0.1, 0.2, 0.4, 0.1, math.inf])
    assert row.broken_by.tolist() == [-1, 0, 1, 0, 1, -1]
    assert row.distances.tolist() == pytest.approx([0, 0.09, 0.18, 0.36, 0.09, math.inf])
    assert torch.equal(row.indices, SMALL.indices)
    assert [int(row.standing(epsilon).sum()) for epsilon in (0.1, 0.2, 0.4)] == [3, 2, 1]


def test_accuracy_and_both_ends_of_its_interval_fall_by_construction() -> None:
    draw = torch.Generator().manual_seed(0)
    deltas = [0.05 * k for k in range(1, 9)]
    cells = [cell(delta, (torch.randint(0, 3, (60,), generator=draw) - 1).tolist()) for delta in deltas]
    apart = [each.summary()["robust"][0]["accuracy"] for each in cells]
    assert apart != sorted(apart, reverse=True)
    levels = spectrum(cells).summary()["robust"]
    assert [level["epsilon"] for level in levels] == deltas
    for name in ("low", "accuracy", "high"):
        found = [level[name] for level in levels]
        assert found == sorted(found, reverse=True)
    assert all(level["accuracy"] <= accuracy for level, accuracy in zip(levels, apart, strict=True))
    assert sum(sum(level["broken_by"].values()) for level in levels) == 60 - round(levels[-1]["accuracy"] * 60)


def test_the_order_of_the_cells_does_not_matter_and_one_is_its_own_row() -> None:
    rows = {spectrum(list(order)).to_bytes() for order in permutations([SMALL, MIDDLE, LARGE])}
    assert len(rows) == 1
    assert spectrum([MIDDLE]).to_bytes() == MIDDLE.to_bytes()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (cell(0.1, [None, 0, -1, -1, 1, -1]), "epsilon 0.1 is in more than one of the outcomes"),
        (replace(LARGE, indices=LARGE.indices + 1), "at epsilon 0.4 are of other examples"),
        (cell(0.4, [None, -1]), "at epsilon 0.4 are of other examples"),
        (cell(0.4, [0, None, -1, -1, 1, -1]), "at epsilon 0.4 are of another network"),
        (cell(0.4, [None, -1, -1, 0, 0, -1], norm="l2"), "at epsilon 0.4 are in norm l2, others in linf"),
        (
            replace(LARGE, threat=Threat("linf", (0.4,), ("pgd", "fab"))),
            "come from other attacks: pgd, square and pgd, fab",
        ),
        (replace(LARGE, threat=Threat("linf", (0.2, 0.4), ATTACKS)), "one epsilon each, not at 2"),
    ],
    ids=["twice", "examples", "fewer", "network", "norm", "attacks", "curve"],
)
def test_cells_that_do_not_belong_together_are_refused(other: Outcomes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spectrum([SMALL, other])


def test_there_is_no_spectrum_of_nothing() -> None:
    with pytest.raises(ValueError, match="no outcomes to join"):
        spectrum([])
