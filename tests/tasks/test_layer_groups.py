"""Shares of their own for groups of layers: exact counts, ranked together, and one clear line for what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tasks.models.initialise import initialise
from tasks.models.lenet import LeNet300100
from tasks.pruning.gap import GAP
from tasks.pruning.mask import Mask
from tasks.pruning.prune import Prune
from tasks.task import Alone
from tests.tasks.test_pruning import HIDDEN1, HIDDEN2, MNIST, OUTPUT, Finished, kept_by, tiny, trained

FIRST, SECOND, LAST = "body.0.weight", "body.1.weight", "body.2.weight"
RISING = [[float(10 * layer + weight) for weight in range(1, 11)] for layer in range(3)]
"""Ten weights a layer, those of the first layer the smallest."""


def pruned(**fields: Any) -> Mask:
    return kept_by(Prune(**fields).run(Alone(), trained=trained(tiny(*RISING))))


def group(layers: str, fraction: float) -> dict[str, Any]:
    return {"layers": layers, "fraction": fraction}


@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_a_group_loses_its_own_share_and_the_others_that_of_the_pruning(scope: str) -> None:
    kept = pruned(fraction=0.2, scope=scope, groups=[group(FIRST, 0.7)])
    assert kept.layer_nnz[FIRST] == 3
    others = [kept.layer_nnz[SECOND], kept.layer_nnz[LAST]]
    assert others == ([6, 10] if scope == "global" else [8, 8])


@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_kernels_of_a_group_are_ranked_together(scope: str) -> None:
    kept = pruned(fraction=0.1, scope=scope, groups=[group("body.[01].*", 0.4)])
    assert kept.layer_nnz == {FIRST: 2, SECOND: 10, LAST: 9}


def test_a_kernel_belongs_to_the_first_group_that_names_it() -> None:
    kept = pruned(fraction=0.1, groups=[group(SECOND, 0.5), group("body.*", 0.2)])
    assert kept.layer_nnz[SECOND] == 5
    assert kept.layer_nnz[FIRST] + kept.layer_nnz[LAST] == 16
    with pytest.raises(ValueError, match=r"groups\.1\.layers: 'body\.1\.weight' names none of the kernels"):
        pruned(fraction=0.1, groups=[group("body.*", 0.2), group(SECOND, 0.5)])


def test_groups_may_name_every_layer() -> None:
    kept = pruned(fraction=0.9, groups=[group(FIRST, 0.1), group("*", 0.4)])
    assert kept.layer_nnz == {FIRST: 9, SECOND: 2, LAST: 10}


def test_a_layer_that_its_group_leaves_empty_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"fraction 0\.9 beside groups leaves none of the 10 weights of 'body\.1\.w"):
        pruned(fraction=0.9, groups=[group(FIRST, 0.1), group("*", 0.5)])


def test_a_group_of_all_layers_is_the_global_scope() -> None:
    model = initialise(LeNet300100(), MNIST, 0, "xavier-normal")
    both = [Prune(fraction=0.3), Prune(fraction=0.9, scope="layerwise", groups=(group("*", 0.3),))]
    first, second = (kept_by(prune.run(Alone(), trained=trained(model))) for prune in both)
    assert first.to_bytes() == second.to_bytes()


def test_the_output_layer_may_be_halved_beside_groups_or_belong_to_one() -> None:
    assert pruned(fraction=0.2, output_layer="half", groups=[group(FIRST, 0.4)]).layer_nnz == {
        FIRST: 6,
        SECOND: 8,
        LAST: 9,
    }
    assert pruned(fraction=0.2, groups=[group(LAST, 0.4)]).layer_nnz[LAST] == 6


def test_groups_keep_their_shares_level_by_level() -> None:
    model = initialise(LeNet300100(), MNIST, 0, "xavier-normal")
    prune = Prune(fraction=0.2, output_layer="exclude", groups=(group(HIDDEN1, 0.5),))
    mask = None
    for level in range(1, 4):
        inputs = {}
        if mask is not None:
            mask.apply_(model)
            inputs["mask"] = Finished({"mask.safetensors": mask.to_bytes()})
        before, mask = mask, kept_by(prune.run(Alone(), trained=trained(model), **inputs))
        assert before is None or mask.nested_in(before)
        assert mask.layer_nnz == {HIDDEN1: 235_200 // 2**level, HIDDEN2: round(30_000 * 0.8**level), OUTPUT: 1_000}


def test_rounds_reach_the_same_counts() -> None:
    once, often = (pruned(fraction=0.2, rounds=rounds, groups=[group(FIRST, 0.8)]) for rounds in (1, 4))
    assert once.layer_nnz == often.layer_nnz
    assert torch.equal(once[FIRST], often[FIRST])


@pytest.mark.parametrize("layers", ["body.7*", "conv*"])
def test_a_pattern_without_kernels_is_refused_with_those_there_are(layers: str) -> None:
    message = r"groups\.0\.layers: .* names none of .*: body\.0\.weight, body\.1\.weight, body\.2\.weight"
    with pytest.raises(ValueError, match=message):
        pruned(fraction=0.2, groups=[group(layers, 0.4)])


@pytest.mark.parametrize("output_layer", ["exclude", "half"])
def test_a_group_of_the_spared_output_layer_alone_is_refused(output_layer: str) -> None:
    with pytest.raises(ValueError, match=r"groups\.0\.layers: .*: body\.0\.weight, body\.1\.weight$"):
        pruned(fraction=0.2, output_layer=output_layer, groups=[group(LAST, 0.4)])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"density": 0.2}, "groups: each loses a share of what it has left; give fraction"),
        ({"fraction": 0.2, "scope": "erk"}, "groups: scope erk .* allowed: global, layerwise"),
        ({"fraction": 0.2, "scope": "uniform"}, "groups: scope uniform"),
        (
            {"fraction": 0.2, "scope": "layerwise", "saliency": GAP(epsilon=0.1, variant="layer")},
            "groups: this gap ranks weights within their layer",
        ),
    ],
)
def test_fields_that_contradict_groups_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prune(**fields, groups=[group(FIRST, 0.4)])


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_a_share_outside_its_bounds_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"groups\.0\.fraction"):
        Prune(fraction=0.2, groups=[group(FIRST, fraction)])


def test_groups_are_named_by_the_key_and_their_absence_is_not() -> None:
    assert "groups" not in Prune(fraction=0.2).identity()
    assert Prune(fraction=0.2, groups=(group(FIRST, 0.4),)).identity()["groups"] == [
        {"kind": "layer-group", "layers": FIRST, "fraction": 0.4}
    ]
