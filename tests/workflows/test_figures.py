"""The figures that a search looks at: those promised are those delivered, and they are the networks' own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

from cluster.runs import Finished, finished_steps
from cluster.store import Store
from tasks.measuring.outcomes import FILE, Outcomes
from tasks.pruning.mask import Mask
from tests.workflows import colts, conftest, evaluations
from tests.workflows.conftest import drive, write_recipe
from workflows import Workflow
from workflows.command.recipe import load_recipe
from workflows.compare_pruning import ComparePruning
from workflows.figures import Figures
from workflows.imp import IMP

DATA = {"kind": "mnist-mini", "validation": 100, "subset": 200}
CHAIN: dict[str, Any] = {
    **conftest.SMALL,
    "levels": 2,
    "replicates": 2,
    "epsilons": [0.02, 0.1],
    "split": "validation",
    "latency": 4,
}
COLT: dict[str, Any] = colts.content(
    split="validation", latency=1, replicates=1, sparsity=0.4, transfer=[], train__data=DATA, train__epochs=1
)
MODELS: dict[str, Any] = {**evaluations.SMALL, "split": "validation", "latency": 2, "corruptions": []}


def ran(folder: Path, content: Mapping[str, Any], store: str = "store") -> tuple[Workflow, list[Finished]]:
    """A workflow, and the finished steps of its run on the store of a folder."""
    opened, recipe = Store.open(str(folder / store)), load_recipe(str(write_recipe(folder, dict(content))))
    run, code = drive(opened, recipe, folder / "out")
    assert code == 0, run
    return recipe.workflow, finished_steps(opened, run.id)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workflow, list[Finished]]:
    return ran(tmp_path_factory.mktemp("chain"), CHAIN)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store in which the models were evaluated; only to be added to."""
    folder = tmp_path_factory.mktemp("models")
    ran(folder, MODELS)
    return folder


def require_promised(workflow: Workflow, finished: list[Finished]) -> Figures:
    found = workflow.figures(finished)
    assert tuple(found.values) == workflow.figure_names()
    assert all(type(value) is float for value in found.values.values())
    accuracies = {name for name in found.values if name == "clean" or name.startswith("robust@")}
    assert set(found.outcomes) == accuracies
    for name in accuracies:
        assert found.outcomes[name].dtype == torch.bool
        assert found.outcomes[name].float().mean().item() == pytest.approx(found.values[name])
    return found


def at(finished: list[Finished], kind: str, **place: Any) -> list[Finished]:
    """The steps of a kind at a place, of every replicate, controls left out."""
    return [
        step for step in finished if step.kind == kind and "control" not in step.at and place.items() <= step.at.items()
    ]


def test_figures_of_a_chain_are_those_of_its_deepest_tickets(chain: tuple[Workflow, list[Finished]]) -> None:
    workflow, finished = chain
    found = require_promised(workflow, finished)
    assert workflow.figure_names() == (
        *("clean", "robust@0.02", "robust@0.1", "clean-drop", "robust-drop@0.02", "robust-drop@0.1"),
        *("sparsity", "size", "latency", "sample-steps"),
    )
    tickets, dense = at(finished, "evaluate", level=2), at(finished, "evaluate", level=0)
    assert len(tickets) == len(dense) == 2
    clean = mean(step.metrics["clean"]["accuracy"] for step in tickets)
    assert found.values["clean"] == pytest.approx(clean)
    assert found.values["clean-drop"] == pytest.approx(
        mean(step.metrics["clean"]["accuracy"] for step in dense) - clean
    )
    robust = [mean(step.metrics["robust"][1]["accuracy"] for step in steps) for steps in (dense, tickets)]
    assert found.values["robust@0.1"] == pytest.approx(robust[1])
    assert found.values["robust-drop@0.1"] == pytest.approx(robust[0] - robust[1])
    together = torch.cat([Outcomes.from_bytes(step.step.read(FILE)).standing(0.1) for step in tickets])
    assert torch.equal(found.outcomes["robust@0.1"], together)


def test_sparsity_and_size_are_counted_under_the_mask(chain: tuple[Workflow, list[Finished]]) -> None:
    workflow, finished = chain
    found = workflow.figures(finished).values
    trained = at(finished, "train", level=2)
    masks = [Mask.from_bytes(step.step.read("mask.safetensors")) for step in trained]
    assert found["sparsity"] == pytest.approx(0.75, abs=1e-5)
    biases = 300 + 100 + 10
    assert found["size"] == mean(mask.nnz for mask in masks) + biases


def test_sample_steps_are_those_of_all_steps_each_once(chain: tuple[Workflow, list[Finished]]) -> None:
    workflow, finished = chain
    expected = sum(step.metrics["sample_steps"] for step in finished if step.kind == "train")
    assert workflow.figures(finished).values["sample-steps"] == expected
    assert workflow.figures([*finished, *finished]).values["sample-steps"] == expected


def test_the_last_networks_alone_are_timed(chain: tuple[Workflow, list[Finished]]) -> None:
    workflow, finished = chain
    timed = [step for step in finished if step.kind == "latency"]
    assert [(step.at["replicate"], step.at["level"], "control" in step.at) for step in timed] == [
        (0, 2, False),
        (1, 2, False),
    ]
    assert {step.metrics["batch"] for step in timed} == {4}
    assert workflow.figures(finished).values["latency"] == pytest.approx(
        mean(step.metrics["seconds"] for step in timed)
    )


def test_a_chain_is_measured_on_the_split_it_names(chain: tuple[Workflow, list[Finished]]) -> None:
    workflow, finished = chain
    assert {step.step.manifest["task"]["split"] for step in at(finished, "evaluate")} == {"validation"}
    assert workflow.report(finished).y_label == "validation accuracy, %"


def test_the_sparsity_of_a_chain_is_known_before_it_runs(chain: tuple[Workflow, list[Finished]]) -> None:
    workflow, finished = chain
    assert workflow.planned() == {"sparsity": workflow.figures(finished).values["sparsity"]}


def test_the_sparsity_of_groups_is_known_before_they_are_pruned(tmp_path: Path) -> None:
    groups = [{"layers": "body.hidden1.*", "fraction": 0.9}, {"layers": "*output*", "fraction": 0.1}]
    content = {**conftest.SMALL, "levels": 2, "controls": [], "prune": {"fraction": 0.5, "groups": groups}}
    workflow, finished = ran(tmp_path, content)
    found = require_promised(workflow, finished).values
    assert workflow.planned()["sparsity"] == found["sparsity"]
    (trained,) = at(finished, "train", level=2)
    mask = Mask.from_bytes(trained.step.read("mask.safetensors"))
    assert list(mask.layer_nnz.values()) == [2352, 7500, 810]
    assert "latency" not in found


def test_figures_of_colt_are_those_of_the_first_partitions_ticket(tmp_path: Path) -> None:
    workflow, finished = ran(tmp_path, COLT)
    found = require_promised(workflow, finished)
    evaluated = {arm: at(finished, "evaluate", arm=arm)[0].metrics for arm in ("dense", "iid", "class-ranges", "imp")}
    assert found.values["robust@0.05"] == evaluated["iid"]["robust"][0]["accuracy"]
    drop = evaluated["dense"]["clean"]["accuracy"] - evaluated["iid"]["clean"]["accuracy"]
    assert found.values["clean-drop"] == pytest.approx(drop)
    assert 0.4 <= found.values["sparsity"] < 0.7
    assert {step.at["arm"] for step in finished if step.kind == "latency"} == {"iid", "class-ranges", "imp"}
    other = workflow.model_copy(update={"partitions": ("class-ranges", "iid")}).figures(finished)
    assert not torch.equal(other.outcomes["robust@0.05"], found.outcomes["robust@0.05"])
    assert other.values["robust@0.05"] == evaluated["class-ranges"]["robust"][0]["accuracy"]


def test_figures_of_an_evaluation_are_those_of_the_first_model_and_what_attacking_it_cost(models: Path) -> None:
    workflow, finished = ran(models, MODELS)
    found = require_promised(workflow, finished)
    merged = {step.at["model"]: step for step in finished if step.kind == "merge-outcomes"}
    assert found.values["attack-cost"] == merged["one"].metrics["cost"] != merged["two"].metrics["cost"]
    assert found.values["clean"] == merged["one"].metrics["clean"]["accuracy"]
    assert found.values["sparsity"] == 0
    assert found.values["size"] == 784 * 300 + 300 + 300 * 100 + 100 + 1000 + 10
    assert torch.equal(found.outcomes["robust@0.05"], evaluations.outcomes(merged["one"].step).standing(0.05))
    assert "clean-drop" not in found.values


@pytest.mark.parametrize(
    "changes",
    [
        {"latency": None},
        {"attacks": [], "epsilons": [], "calibrate": False, "latency": None},
        {"attacks": [{"kind": "transfer", "source": "one", "steps": 3}], "calibrate": False},
        {"models": dict(reversed(MODELS["models"].items())), "latency": None},
    ],
    ids=["no-latency", "no-attacks", "only-transfers-from-itself", "another-first"],
)
def test_an_evaluation_delivers_what_it_promises(models: Path, changes: dict[str, Any]) -> None:
    require_promised(*ran(models, {**MODELS, **changes}))


def test_a_stored_step_has_its_figures_too(models: Path) -> None:
    workflow, finished = ran(models, MODELS)
    (key,) = (step.step.key for step in finished if step.kind == "train" and step.at["model"] == "one")
    stored = {"mine": {"kind": "stored", "step": key[:12]}}
    found = require_promised(*ran(models, {**MODELS, "models": stored, "attacks": ["fgsm"], "latency": None}))
    assert found.values["size"] == workflow.figures(finished).values["size"]
    assert found.values["clean"] == workflow.figures(finished).values["clean"]


def test_compared_networks_are_timed_and_measured_on_the_split_that_is_named(tmp_path: Path) -> None:
    content = {
        **{name: conftest.SMALL[name] for name in ("attacks", "epsilons", "examples")},
        "kind": "compare-pruning",
        "methods": {"one-shot": {"kind": "after-training"}},
        "train": {**conftest.SMALL["train"], "epochs": 2},
        "epochs": 2,
        "sparsities": [0.5],
        "corruptions": ["contrast"],
        "severities": [1],
        "split": "validation",
        "latency": 2,
    }
    workflow, finished = ran(tmp_path, content)
    points = workflow.report(finished).results
    seconds = {step.metrics["seconds"] for step in finished if step.kind == "latency"}
    assert {point["latency"] for point in points} == seconds
    assert len(seconds) == len(points) == 2
    measured = [step for step in finished if step.kind in ("evaluate", "evaluate-corrupted")]
    assert {step.step.manifest["task"].get("split") for step in measured} == {"validation"}


def test_a_workflow_that_is_not_searched_promises_nothing() -> None:
    assert ComparePruning.figure_names(ComparePruning.model_construct()) == ()


def test_new_fields_leave_the_identity_of_a_workflow_as_it_was() -> None:
    content = {name: value for name, value in conftest.SMALL.items() if name != "kind"}
    named = IMP.model_validate(content).identity()
    assert not {"split", "latency"} & named.keys()
    assert "groups" not in named["prune"]
