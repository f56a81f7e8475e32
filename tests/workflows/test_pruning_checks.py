"""What reviews of pruning workflows found: each was wrong once, or was told only after the work."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cluster.plan import make_plan
from cluster.store import Store
from tasks.pruning.prune import Prune
from tests.workflows.conftest import SMALL, write_recipe
from tests.workflows.test_compare_pruning import METHODS, RECIPE
from workflows.command.recipe import load_recipe
from workflows.imp import IMP

RAMPED = {"kind": "pgd", "epsilon": 0.1, "steps": 1, "budget": "ramp"}
GRADUAL = {"kind": "gradual", "density": 0.00001, "scope": "uniform"}


def imp(folder: Path, **fields: Any) -> IMP:
    workflow = load_recipe(str(write_recipe(folder, {**SMALL, **fields}))).workflow
    assert isinstance(workflow, IMP)
    return workflow


def planned(workflow: IMP) -> list[Any]:
    return [step.handle for step in asyncio.run(make_plan(Store.open("memory://"), workflow.run)).steps]


@pytest.mark.parametrize("retraining", ["rewind", "learning-rate-rewind"])
def test_a_control_never_starts_where_its_mask_finds_zeros(tmp_path: Path, retraining: str) -> None:
    """Weights kept from a sparse level are zero outside its mask; the initial and the dense ones are not."""
    steps = planned(imp(tmp_path, levels=3, retraining=retraining, controls=["shuffled", "random"]))
    controls = [step for step in steps if step.at.get("control") and step.task.kind == "train"]
    assert len(controls) == 6
    for control in controls:
        start = control.inputs.get("start")
        assert start is None if retraining == "rewind" else start.at["level"] == 0 and "mask" not in start.inputs


def test_replicates_draw_their_random_masks_by_themselves(tmp_path: Path) -> None:
    prune = {"fraction": 0.5, "saliency": "random"}
    seeds = [step.task.seed for step in planned(imp(tmp_path, prune=prune, replicates=3)) if step.task.kind == "prune"]
    assert sorted(seeds) == [0, 1, 2]
    magnitude = [step.task for step in planned(imp(tmp_path, replicates=3)) if step.task.kind == "prune"]
    assert magnitude == [Prune(fraction=0.5)] * 3, "what draws nothing keeps its name"


def test_layerwise_levels_are_counted_layer_by_layer(tmp_path: Path) -> None:
    workflow = imp(tmp_path, prune={"fraction": 0.3, "scope": "layerwise"}, levels=4)
    kept = {"1": 235_200, "2": 30_000, "3": 1_000}
    for density in workflow.densities(workflow.train):
        kept = {name: count - round(0.3 * count) for name, count in kept.items()}
        assert density == sum(kept.values()) / 266_200


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"prune": {"fraction": 0.6, "scope": "uniform"}, "levels": 9}, "prune: .* leaves none of the"),
        ({"prune": {"density": 0.999999}, "levels": 3}, "levels: level 3 is out of reach; pruning ends at level"),
        ({"controls": ["random", "random"]}, "controls: give each only once"),
        (
            {"train": {**SMALL["train"], "sparsifier": GRADUAL}},
            "train.sparsifier: a chain prunes between its trainings",
        ),
        ({"train": {**SMALL["train"], "objective": "distilled"}}, "train.objective: distilled learns from a teacher"),
        (
            {"train": {**SMALL["train"], "sparsifier": GRADUAL, "robust_validation": {"epsilon": 0.1, "patience": 2}}},
            "robust_validation.patience: it may end the training before the sparsifier",
        ),
        (
            {"kind": "evaluate", "models": {"a": {"kind": "train", **SMALL["train"], "sparsifier": GRADUAL}}},
            "leaves none",
        ),
        (
            {"kind": "connectivity", "train": {**SMALL["train"], "sparsifier": GRADUAL}},
            "train.sparsifier: networks are",
        ),
        (
            {
                "kind": "epsilon-sweep",
                "train": {**SMALL["train"], "objective": {"kind": "fgsm", "epsilon": 0.1}, "sparsifier": GRADUAL},
                "epsilons": [0.1],
                "deltas": [0.1],
            },
            "train.sparsifier: sparse networks come from prune or masks here",
        ),
        (
            {"kind": "colt", "sparsity": 0.5, "parts": 10},
            "parts: 10 class ranges of 10 classes leave one class to each",
        ),
        (
            {"kind": "colt", "sparsity": 0.5, "transfer": [SMALL["train"]["data"]]},
            "transfer.0: these are the data that the tickets are found on",
        ),
    ],
)
def test_it_is_told_before_any_work(tmp_path: Path, fields: dict[str, Any], line: str) -> None:
    kinds = {"colt": ("train",), "connectivity": ("train",), "evaluate": (), "epsilon-sweep": ("attacks",)}
    content = {**{name: SMALL[name] for name in kinds.get(fields.get("kind", ""), SMALL)}, **fields}
    with pytest.raises(ValueError, match=line) as found:
        load_recipe(str(write_recipe(tmp_path, content)))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("method", "changes", "line"),
    [
        ("channels", {"epochs": 1}, "epochs: 1 are too few"),
        ("early-bird", {"objective": "distilled"}, "train.objective: distilled learns from a teacher"),
        ("early-bird", {"objective": {"kind": "pgd", "epsilon": 0.1, "steps": 30}}, "epochs: 6 are too few"),
        (
            "early-bird",
            {"objective": RECIPE["train"]["objective"]},
            "objective: that is what the ticket is trained with",
        ),
        (
            "early-bird",
            {"every": 1.0, "window": 5},
            "window: 5 masks and one more, 1 epochs apart, are not there before",
        ),
        ("hydra", {"train": {"guard": {"every": 5}, "objective": RAMPED}}, "guard: with schedule_from: zero"),
        ("admm", {"train": {"rewind_optimizer": True}}, "rewind_optimizer needs schedule_from: start"),
    ],
)
def test_methods_build_all_that_they_run_before_they_run_it(
    tmp_path: Path, method: str, changes: dict[str, Any], line: str
) -> None:
    content = {**RECIPE, "only": [method], "epochs": changes.pop("epochs", RECIPE["epochs"])}
    content["train"] = {**RECIPE["train"], **changes.pop("train", {})}
    content["methods"] = {**METHODS, method: {**METHODS[method], **changes}}
    with pytest.raises(ValueError, match=line) as found:
        load_recipe(str(write_recipe(tmp_path, content)))
    assert "\n" not in str(found.value)
