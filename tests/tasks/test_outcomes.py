"""Intervals, comparisons and joined outcomes agree with what is worked out another way."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tasks.measuring.compare import paired
from tasks.measuring.intervals import clopper_pearson
from tasks.measuring.outcomes import Outcomes, Threat

THREAT = Threat("linf", (0.1, 0.2), ("pgd", "square"))


def outcomes(broken_at: list[float], threat: Threat = THREAT) -> Outcomes:
    """Examples of class 0, wrong unattacked where broken at 0."""
    at = torch.tensor(broken_at)
    wrong = at == 0
    return Outcomes(
        threat=threat,
        indices=torch.arange(len(at)),
        labels=torch.zeros(len(at), dtype=torch.int64),
        predictions=wrong.long(),
        confidences=torch.full((len(at),), 0.8),
        losses=torch.full((len(at),), 0.5),
        broken_at=at,
        broken_by=torch.where(wrong | at.isinf(), -1, 1),
        distances=at.clone(),
    )


def test_an_example_cannot_be_joined_twice() -> None:
    whole = outcomes([0.1, 0.2, math.inf])
    shifted = replace(whole, indices=whole.indices + 2)
    with pytest.raises(ValueError, match="example 2 is in more than one of the outcomes"):
        Outcomes.joined([whole, shifted])
    assert len(Outcomes.joined([whole, replace(whole, indices=whole.indices + 3)])) == 6


def binomial_tail(count: int, trials: int, p: float) -> float:
    """P(X <= count), added up term by term."""
    return math.fsum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(count + 1))


@pytest.mark.parametrize(("successes", "trials"), [(1, 10), (7, 10), (50, 100), (499, 500), (250, 1000)])
def test_the_ends_of_an_interval_are_where_what_was_seen_becomes_unlikely(successes: int, trials: int) -> None:
    low, high = clopper_pearson(successes, trials)
    assert binomial_tail(successes, trials, high) == pytest.approx(0.025, rel=1e-6)
    assert 1 - binomial_tail(successes - 1, trials, low) == pytest.approx(0.025, rel=1e-6)


def test_an_interval_at_the_edge_reaches_it() -> None:
    assert clopper_pearson(0, 100) == (0.0, pytest.approx(1 - 0.025**0.01))
    assert clopper_pearson(100, 100) == (pytest.approx(0.025**0.01), 1.0)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    draw = torch.Generator().manual_seed(0)
    for truth in (0.03, 0.5, 0.9):
        seen = (torch.rand(2000, 80, generator=draw) < truth).sum(dim=1)
        covered = [low <= truth <= high for low, high in (clopper_pearson(int(count), 80) for count in seen)]
        assert sum(covered) / len(covered) >= 0.94


def test_a_summary_counts_each_example_once() -> None:
    found = outcomes([0, 0.1, 0.1, 0.2, torch.inf, torch.inf, torch.inf, torch.inf])
    summary = found.summary()
    assert summary["clean"]["accuracy"] == 7 / 8
    assert [level["accuracy"] for level in summary["robust"]] == [5 / 8, 4 / 8]
    assert [level["broken_by"] for level in summary["robust"]] == [{"pgd": 0, "square": 2}, {"pgd": 0, "square": 1}]
    for level in (summary["clean"], *summary["robust"]):
        assert level["low"] < level["accuracy"] < level["high"]


def test_intervals_fall_along_the_curve_as_accuracy_does() -> None:
    levels = outcomes([0.1] * 3 + [0.2] * 4 + [torch.inf] * 20).summary()["robust"]
    for name in ("low", "accuracy", "high"):
        assert levels[0][name] > levels[1][name]


def test_outcomes_come_back_from_their_bytes_and_from_their_parts() -> None:
    whole = outcomes([0, 0.1, 0.2, torch.inf, 0.1])
    assert Outcomes.from_bytes(whole.to_bytes()).to_bytes() == whole.to_bytes()
    parts = [outcomes([0, 0.1]), replace(outcomes([0.2, torch.inf, 0.1]), indices=torch.arange(2, 5))]
    assert Outcomes.joined(parts).to_bytes() == whole.to_bytes()
    other = outcomes([0.1], Threat("linf", (0.1, 0.3), ("pgd", "square")))
    with pytest.raises(ValueError, match="2 different threats"):
        Outcomes.joined([whole, other])


def test_a_paired_comparison_of_a_case_worked_by_hand() -> None:
    # At 0.1 the second wins six examples and loses one: P(at most 1 of 7) twice is 2 * 8 / 128.
    first = outcomes([0.1] * 6 + [0.2] + [torch.inf] * 5)
    second = outcomes([0.2] * 6 + [0.1] + [torch.inf] * 5)
    clean, small, large = paired(first, second)
    assert (clean.first_only, clean.second_only, clean.p_value, clean.difference) == (0, 0, 1.0, 0.0)
    assert (small.first_only, small.second_only) == (1, 6)
    assert small.p_value == pytest.approx(16 / 128)
    assert small.difference == pytest.approx(5 / 12)
    assert small.low < 5 / 12 < small.high
    assert (large.epsilon, large.first_only, large.second_only) == (0.2, 0, 0)


def test_paired_intervals_cover_the_truth() -> None:
    draw = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(500):
        common, own, others = (torch.rand(200, generator=draw) < p for p in (0.7, 0.1, 0.25))
        first, second = (outcomes(torch.where(common | each, torch.inf, 0.1).tolist()) for each in (own, others))
        found = paired(first, second)[1]
        covered += found.low <= 0.3 * 0.15 <= found.high
    assert covered / 500 >= 0.93


def test_outcomes_of_other_examples_are_not_compared() -> None:
    first = outcomes([0.1, 0.2])
    with pytest.raises(ValueError, match="same examples"):
        paired(first, replace(first, indices=torch.tensor([0, 2])))
    with pytest.raises(ValueError, match="norm linf and l2"):
        paired(first, replace(first, threat=Threat("l2", (0.1,), ("pgd",))))
