"""Pruning methods side by side: equal density, equal cost, one table; every method by its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.runs import Finished, finished_steps
from cluster.store import Store
from tasks.component import members
from tasks.models.weights import load_weights
from tasks.pruning import Saliency
from tasks.pruning.mask import Mask
from tests.workflows.chains import attempts_of, finish_under_fire, recipe_in, results_of, run_chain
from tests.workflows.conftest import drive, write_recipe
from workflows.command.recipe import BadRequest, load_recipe
from workflows.compare_pruning import ComparePruning
from workflows.pruning_methods import PruningMethod

SPARSITY = 0.8
GAP = {"kind": "gap", "epsilon": 0.1, "steps": 1, "examples": 40}
METHODS: dict[str, Any] = {
    "random": {"kind": "before-training", "saliency": "random", "scope": "erk"},
    "snip": {"kind": "before-training", "saliency": "snip"},
    "grasp": {"kind": "before-training", "saliency": "grasp"},
    "synflow": {"kind": "before-training", "saliency": "synflow", "rounds": 5},
    "one-shot": {"kind": "after-training"},
    "layerwise": {"kind": "after-training", "scope": "layerwise"},
    "uniform": {"kind": "after-training", "scope": "uniform"},
    "fine-tuned": {"kind": "after-training", "retraining": "fine-tune", "fine_tune_rate": 0.01},
    "magnitude-gradient": {"kind": "after-training", "saliency": {"kind": "magnitude-gradient", "examples": 40}},
    "gap": {"kind": "after-training", "saliency": GAP},
    "gap-parameter": {"kind": "after-training", "saliency": {**GAP, "variant": "global-times-parameter"}},
    "gap-layer": {"kind": "after-training", "saliency": {**GAP, "variant": "layer"}, "scope": "layerwise"},
    "imp": {"kind": "after-training", "levels": 2, "retraining": "rewind"},
    "lrr": {"kind": "after-training", "levels": 2},
    "gradual": {"kind": "gradual-pruning"},
    "early-bird": {"kind": "early-bird-pruning", "window": 1, "every": 0.5, "distance": 0.9},
    "deadwooding": {"kind": "deadwooding"},
    "admm": {"kind": "admm-pruning"},
    "hydra": {"kind": "hydra-pruning"},
    "channels": {"kind": "channel-norm"},
}
RECIPE: dict[str, Any] = {
    "kind": "compare-pruning",
    "train": {
        "data": {"kind": "mnist-mini", "validation": 100, "subset": 200},
        "architecture": "small-cnn",
        "objective": {"kind": "pgd", "epsilon": 0.1, "steps": 1},
        "optimizer": {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9},
        "epochs": 6,
        "batch_size": 50,
    },
    "epochs": 6,
    "sparsities": [SPARSITY],
    "methods": METHODS,
    "attacks": [{"kind": "pgd", "steps": 2}, {"kind": "fgsm"}],
    "epsilons": [0.1],
    "examples": 20,
    "corruptions": ["contrast"],
    "severities": [3],
}


def recipe_with(**changes: Any) -> dict[str, Any]:
    return {**RECIPE, **changes}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[ComparePruning, list[Finished]]:
    """The workflow of all methods, and its finished steps."""
    folder = tmp_path_factory.mktemp("compared")
    store, recipe = Store.open(str(folder / "store")), load_recipe(str(write_recipe(folder, RECIPE)))
    run, code = drive(store, recipe, folder / "out")
    assert code == 0
    assert isinstance(recipe.workflow, ComparePruning)
    return recipe.workflow, list(finished_steps(store, run.id))


@pytest.fixture(scope="module")
def points(compared: tuple[ComparePruning, list[Finished]]) -> dict[str, Mapping[str, Any]]:
    """The results by method."""
    workflow, finished = compared
    return {point["method"]: point for point in workflow.report(finished).results}


def test_every_method_and_every_saliency_is_among_them() -> None:
    assert {method["kind"] for method in METHODS.values()} == set(members(PruningMethod))
    saliencies = {saliency if isinstance(saliency, str) else saliency["kind"]
                  for method in METHODS.values() if (saliency := method.get("saliency", "magnitude"))}  # fmt: skip
    shipped = {kind for kind, member in members(Saliency).items() if member.__module__.startswith("tasks.")}
    assert saliencies == shipped


def test_all_meet_the_density_and_stay_within_the_budget(points: dict[str, Mapping[str, Any]]) -> None:
    assert set(points) == {"dense", *METHODS}
    budget = 6 * 200 * 2
    assert points["dense"]["sample_steps"] == budget
    for name, point in points.items():
        if name in ("dense", "channels"):
            continue
        assert point["density"] == pytest.approx(1 - SPARSITY, abs=1e-4), name
        assert abs(point["sample_steps"] - budget) <= 200, f"{name} is off by more than half an epoch"
    assert points["grasp"]["sample_steps"] == 5 * 200 * 2 + 300, "scores are paid for out of the same budget"
    assert 0.1 < points["channels"]["density"] <= 1 - SPARSITY
    assert points["dense"]["density"] == 1


def test_masks_differ_and_their_weights_are_dead(compared: tuple[ComparePruning, list[Finished]]) -> None:
    workflow, finished = compared
    by_key = {step.step.key: step for step in finished}
    masks = {}
    for point in workflow.report(finished).results:
        if point["method"] != "dense":
            trained = by_key[by_key[point["step"]].step.manifest["inputs"]["trained"]].step
            mask = masks[point["method"]] = Mask.from_bytes(trained.read("mask.safetensors"))
            for file in ("weights.safetensors", "best.safetensors"):
                mask.audit_weights(load_weights(trained.read(file)).kernels())
    assert masks["layerwise"] == masks["uniform"]  # of a dense network the same
    assert len({mask.digest for mask in masks.values()}) == len(masks) - 2  # and fine-tuning has that of one-shot


def test_the_table_says_where_each_method_stands(compared: tuple[ComparePruning, list[Finished]]) -> None:
    workflow, finished = compared
    report = workflow.report(finished)
    assert list(report.columns[2:]) == ["kept %", "clean %", "pgd %", "pgd+fgsm %", "corruption %", "cost %"]
    rows = {row[0]: row for row in report.rows}
    assert rows["lrr"][1] == "after, iterative, unstructured, global, magnitude, learning-rate-rewind"
    assert rows["channels"][1].startswith("after, one-shot, channels, layerwise, l1 norm")
    assert rows["dense"][-1] == "100"
    assert all(all(cell for cell in row[2:]) for row in report.rows)
    by_key = {step.step.key: step.metrics for step in finished}
    for point in report.results:
        (entry,) = by_key[point["step"]]["robust"]
        assert point["pgd+fgsm"] == entry["accuracy"] <= point["pgd"] <= point["clean"]
        assert point["pgd"] == pytest.approx(point["clean"] - entry["broken_by"]["pgd"] / 20)
    assert any(point["pgd"] < point["clean"] for point in report.results)


def test_a_subset_shares_its_steps_with_the_whole_and_controls_stand_beside(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    few = recipe_with(only=["one-shot"], controls=["random", "shuffled", "reinit"])
    recipe = load_recipe(str(write_recipe(tmp_path, few)))
    run, code = drive(store, recipe, tmp_path / "out")
    assert code == 0
    report = recipe.workflow.report(list(finished_steps(store, run.id)))
    arms = [row[0] for row in report.rows]
    assert arms == ["dense", "one-shot", "one-shot random", "one-shot shuffled", "one-shot reinit"]
    assert len({point["step"] for point in report.results}) == 5
    corrupted = [point["arm"] for point in report.results if "corruption" in point]
    assert corrupted == ["ticket", "ticket"], "controls were not measured under corruptions"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"only": ["snp"]}, "only: there is no method 'snp'; did you mean 'snip'?"),
        (
            {"sparsities": [0.9999], "only": ["channels"]},
            "methods.channels at sparsity 0.9999: density 0.0001 is out",
        ),
        ({"sparsities": [0.9999], "only": ["uniform"]}, "methods.uniform at sparsity 0.9999: .* leaves none"),
        (
            {"methods": {"a": {"kind": "before-training", "saliency": {"kind": "snip", "examples": 201}}}},
            "methods.a at sparsity 0.8: saliency: examples is 201, but the training split holds 200",
        ),
        (
            {"methods": {"a": {"kind": "after-training", "saliency": {"kind": "grasp", "per_class": 30}}}},
            "methods.a at sparsity 0.8: prune: saliency: per_class is 30, but class ",
        ),
        ({"epochs": 1, "only": ["hydra"]}, "epochs: 1 are too few to be divided among the trainings of this method"),
        ({"sparsities": [0.9, 0.5]}, "sparsities"),
        ({"epsilons": [0.1, 0.2]}, "epsilons: the table has room for one radius"),
        ({"methods": {"a": "hydra-pruning", "b": "hydra-pruning"}}, "'a' and 'b' are the same method"),
        ({"methods": {"dense": "hydra-pruning"}}, "no method can be called 'dense'"),
        (
            {"methods": {"a": {"kind": "before-training", "output_layer": "exclude"}}, "sparsities": [0.995]},
            "methods.a at sparsity 0.995: density 0.005 .* the output layer, which is spared, .*nothing is left",
        ),
        (
            {"only": ["channels"], "train": {**RECIPE["train"], "architecture": "vit"}},
            "methods.channels at sparsity 0.8: ",
        ),
    ],
)
def test_what_cannot_be_is_one_line_before_any_work(changes: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises((BadRequest, ValueError), match=line) as found:
        load_recipe(str(write_recipe(tmp_path, recipe_with(**changes)))).workflow.check()
    assert "\n" not in str(found.value).strip()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3))
def test_every_method_killed_and_run_again_equals_undisturbed_byte_for_byte(seed: int, tmp_path: Path) -> None:
    train = {**RECIPE["train"], "data": {"kind": "mnist-mini", "validation": 100, "subset": 1000}}
    content = yaml.safe_dump(recipe_with(train=train, corruptions=[]))
    folders = [tmp_path / name for name in ("undisturbed", "killed")]
    for folder in folders:
        folder.mkdir()
        (folder / "chain.yaml").write_text(content)
        assert recipe_in(folder).read_text() == content
    assert run_chain(folders[0]).returncode == 0
    assert finish_under_fire(folders[1], seed)
    assert results_of(folders[1]) == results_of(folders[0])
    assert max(attempts_of(folders[1]).values()) > 1


def test_the_network_without_removed_channels_is_a_smaller_one_and_can_be_measured_as_a_stored_step(
    compared: tuple[ComparePruning, list[Finished]], tmp_path: Path
) -> None:
    workflow, finished = compared
    (compact,) = [step for step in finished if step.kind == "compact"]
    (masked,) = [
        step
        for step in finished
        if step.kind == "evaluate" and step.step.manifest["inputs"] == compact.step.manifest["inputs"]
    ]
    assert any(compact.step.key[:12] in note for note in workflow.report(finished).notes)
    assert compact.metrics["parameters"] < 0.5 * compact.metrics["before"]
    store = compact.step.store
    content = {"kind": "evaluate", "models": {"small": {"kind": "stored", "step": compact.step.key}}, "examples": 20}
    run, code = drive(store, load_recipe(str(write_recipe(tmp_path, content, "stored"))), tmp_path / "out")
    assert code == 0
    (evaluated,) = [step for step in finished_steps(store, run.id) if step.kind == "evaluate"]
    assert evaluated.metrics["clean"]["accuracy"] == masked.metrics["clean"]["accuracy"]
