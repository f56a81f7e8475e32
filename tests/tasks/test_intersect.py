"""What several masks of a round agree on, and what is said of their agreement."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.pruning.intersect import IntersectMasks
from tasks.pruning.mask import Mask
from tasks.seeds import generator
from tasks.task import Alone, Result
from tests.tasks.training_toys import Finished


def mask(**layers: str) -> Mask:
    """Layers written as `1` for kept and `0` for pruned."""
    return Mask({name: torch.tensor([kept == "1" for kept in row]) for name, row in layers.items()})


def step(given: Mask) -> Finished:
    return Finished(given.summary(), {"mask.safetensors": given.to_bytes()})


def intersect(before: Mask | None = None, spared: tuple[str, ...] = (), **masks: Mask) -> Result:
    inputs = {name: step(each) for name, each in masks.items()}
    if before is not None:
        inputs["before"] = step(before)
    return IntersectMasks(spared=spared).run(Alone(), **inputs)


def kept_by(result: Result) -> Mask:
    return Mask.from_bytes(result.files["mask.safetensors"])


def test_it_keeps_what_all_keep_and_describes_that_mask() -> None:
    result = intersect(a=mask(one="1110", two="11"), b=mask(one="0111", two="10"), c=mask(one="1111", two="11"))
    assert kept_by(result) == mask(one="0110", two="10")
    assert {name: result.metrics[name] for name in ("kept", "total", "density")} == {
        "kept": 3,
        "total": 6,
        "density": 0.5,
    }
    assert result.metrics["digest"] == kept_by(result).digest


def test_the_agreement_is_counted_by_hand() -> None:
    before = mask(one="11111110", two="11")
    result = intersect(before, a=mask(one="11110010", two="11"), b=mask(one="11001110", two="01"))
    # of nine, a prunes 4 and 5, b prunes 2, 3 and one of `two`: none in common
    assert result.metrics["survival"] == pytest.approx((9 - 5) / 9)
    assert result.metrics["overlap"] == 0
    assert result.metrics["chance"] == pytest.approx(9 * (2 / 9) * (3 / 9) / 2.5)
    assert result.metrics["chance_in_layers"] == pytest.approx(7 * (2 / 7) * (2 / 7) / 2.5)
    common = intersect(before, a=mask(one="11110010", two="11"), b=mask(one="11110100", two="11"))
    assert common.metrics["overlap"] == pytest.approx(0.5)


def test_a_spared_layer_does_not_soften_the_survival() -> None:
    masks = {"a": mask(body="0011", head="1" * 100), "b": mask(body="0101", head="1" * 100)}
    assert intersect(**masks).metrics["survival"] == pytest.approx(101 / 104)
    assert intersect(spared=("head",), **masks).metrics["survival"] == 0.25


def test_of_three_masks_the_overlap_is_what_all_three_prune() -> None:
    result = intersect(a=mask(one="00111111"), b=mask(one="01011111"), c=mask(one="01101111"))
    assert result.metrics["overlap"] == 0.5
    assert result.metrics["chance"] == pytest.approx(8 * (2 / 8) ** 3 / 2)


@settings(max_examples=50, deadline=None)
@given(parts=st.integers(2, 4), share=st.floats(0.02, 0.24), seed=st.integers(0, 1000))
def test_the_survival_lies_between_disjoint_and_equal_prunings(parts: int, share: float, seed: int) -> None:
    chance = generator(seed, "intersect")
    before = Mask({"one": torch.rand(400, generator=chance) < 0.7, "two": torch.ones(50, dtype=torch.bool)})
    pruned = round(share * before.nnz)
    scores = [{name: torch.rand(layer.shape, generator=chance) for name, layer in before.items()} for _ in range(parts)]
    masks = {f"part{index}": before.top(each, before.nnz - pruned) for index, each in enumerate(scores)}
    result = intersect(before, **masks)
    p = pruned / before.nnz
    assert 1 - parts * p - 1e-9 <= result.metrics["survival"] <= 1 - p + 1e-9
    assert kept_by(result).nested_in(before)


def test_independent_prunings_overlap_by_chance_and_equal_ones_wholly() -> None:
    before = Mask({"one": torch.ones(20_000, dtype=torch.bool)})
    masks = {name: before.top({"one": torch.rand(20_000, generator=generator(name))}, 17_000) for name in ("a", "b")}
    independent = intersect(before, **masks).metrics
    assert independent["chance"] == independent["chance_in_layers"] == pytest.approx(0.15)
    assert independent["overlap"] == pytest.approx(0.15, abs=0.03)
    assert intersect(before, a=masks["a"], b=masks["a"]).metrics["overlap"] == 1


def test_the_names_of_the_masks_make_no_difference() -> None:
    first, second = mask(one="1100"), mask(one="1010")
    assert intersect(a=first, b=second) == intersect(z=first, y=second)


def test_what_pruned_nothing_agrees_on_nothing() -> None:
    whole = mask(one="11")
    found = intersect(a=whole, b=whole).metrics
    assert (found["survival"], found["overlap"], found["chance"]) == (1, None, None)


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ({"a": mask(one="11")}, "one of at least two masks; found a"),
        ({"before": mask(one="11"), "b": mask(one="11")}, "one of at least two masks; found b"),
        ({}, "one of at least two masks; found none"),
        ({"a": mask(one="11"), "b": mask(two="11")}, "mask 'b': the mask does not fit: it has no 'one'"),
        ({"a": mask(one="11"), "b": mask(one="111")}, r"mask 'b': the mask does not fit: 'one' is \(3,\)"),
        (
            {"a": mask(one="11"), "b": mask(one="01"), "before": mask(one="01")},
            "mask 'a' keeps weights that were pruned before",
        ),
        (
            {"a": mask(one="1110", two="10"), "b": mask(one="0111", two="01")},
            "the 2 masks agree on none of the 2 weights left of 'two': 2 of 6 weights would stay",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(masks: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as refusal:
        IntersectMasks().run(Alone(), **{name: step(each) for name, each in masks.items()})
    assert "\n" not in str(refusal.value)
