"""The epsilon sweep: a matrix whose cells stand for themselves."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cluster.ledger import Ledger
from cluster.runs import Finished, finished_steps
from cluster.store import Store
from tasks.measuring.outcomes import FILE, Outcomes
from tests.workflows.conftest import drive, record_run
from tests.workflows.sweeps import SMALL, recipe
from workflows.command.launch import plan_of
from workflows.command.recipe import BadRequest
from workflows.report import Report


def swept_in(folder: Path, store: Store | None = None, **changes: Any) -> Report:
    """Runs a sweep to its end."""
    made = recipe(folder, **changes)
    store = store or Store.open(str(folder / "store"))
    run, code = drive(store, made, folder / "out")
    assert code == 0, run
    report: Report = made.workflow.report(finished_steps(store, run.id))
    report.write(folder / "out")
    return report


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe and the store of its finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("swept")
    swept_in(folder)
    return folder


@pytest.fixture
def store(swept: Path, tmp_path: Path) -> Store:
    """A store of one's own with that run."""
    return Store.open(str(shutil.copytree(swept / "store", tmp_path / "store")))


def results(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "out" / "results.json").read_text())["results"]
    return found


def cells(folder: Path) -> list[dict[str, Any]]:
    return [entry for entry in results(folder) if entry["what"] == "cell"]


def steps_of(folder: Path) -> list[Finished]:
    store = Store.open(str(folder / "store"))
    return finished_steps(store, record_run(store, recipe(folder)).id)


def test_every_training_meets_every_attack(swept: Path) -> None:
    found = {(cell["epsilon"], cell["delta"]): cell for cell in cells(swept)}
    assert set(found) == {(epsilon, delta) for epsilon in SMALL["epsilons"] for delta in (0, *SMALL["deltas"])}
    assert all(len(cell["replicates"]) == 2 for cell in found.values())
    trained = {
        (step.at["epsilon"], step.at["replicate"]): step.step for step in steps_of(swept) if step.kind == "train"
    }
    assert len(trained) == 6
    assert trained[0, 0].manifest["task"].get("objective", {"kind": "standard"})["kind"] == "standard"
    assert trained[0.05, 1].manifest["task"]["objective"] == {"kind": "fgsm-rs", "epsilon": 0.05}
    assert trained[0.05, 1].manifest["task"]["seed"] == 1


def test_the_matrix_and_its_intervals_fall_along_delta(swept: Path) -> None:
    for epsilon in SMALL["epsilons"]:
        row = [cell for cell in cells(swept) if cell["epsilon"] == epsilon]
        for nearer, farther in pairwise(sorted(row, key=lambda cell: cell["delta"])):
            for field in ("accuracy", "low", "high"):
                assert farther[field] <= nearer[field]
            assert farther["low"] <= farther["accuracy"] <= farther["high"]


def test_the_best_training_radius_is_named_for_each_attack(swept: Path) -> None:
    best = {entry["delta"]: entry for entry in results(swept) if entry["what"] == "best"}
    assert list(best) == SMALL["deltas"]
    means = {(cell["epsilon"], cell["delta"]): cell["accuracy"] for cell in cells(swept)}
    for delta, entry in best.items():
        assert entry["accuracy"] == pytest.approx(max(means[epsilon, delta] for epsilon in SMALL["epsilons"]))
        if delta in SMALL["epsilons"]:
            assert entry["low"] <= entry["gain"] <= entry["high"]
    assert best[0.03]["gain"] is None, "no network is trained at this radius"


def test_a_longer_grid_computes_one_row_and_one_column_only(swept: Path, store: Store, tmp_path: Path) -> None:
    rows, columns, replicates = 3, 3, 2
    for place, (epsilons, deltas) in enumerate(
        [
            ([0, 0.05, 0.1, 0.2], [0.03, 0.05, 0.1, 0.2]),  # at the end
            ([0, 0.05, 0.07, 0.1], [0.03, 0.05, 0.07, 0.1]),  # in between
        ]
    ):
        longer = recipe(tmp_path / str(place), epsilons=epsilons, deltas=deltas)
        plan = plan_of(longer, store)
        assert len(plan.stored) == rows * replicates * (2 + columns)
        new_row, new_column = replicates * (2 + columns + 1), rows * replicates
        assert len(plan.to_run) == new_row + new_column
        kinds = sorted(step.handle.task.kind for step in plan.to_run)
        assert kinds.count("train") == replicates


def test_a_lost_cell_is_computed_alone_and_comes_back_the_same(swept: Path, store: Store, tmp_path: Path) -> None:
    cell = next(step for step in steps_of(swept) if step.at.get("delta") == 0.05 and step.at["epsilon"] == 0.1)
    lost = Ledger(store).find(cell.step.key)
    assert lost is not None
    shutil.rmtree(tmp_path / "store" / "steps" / cell.step.key[:2] / cell.step.key)
    plan = plan_of(recipe(tmp_path / "again"), store)
    assert [step.handle.key for step in plan.to_run] == [cell.step.key]
    _, code = drive(store, recipe(tmp_path / "again"), tmp_path / "out")
    assert code == 0
    again = Ledger(store).find(cell.step.key)
    assert again is not None
    assert (again.read(FILE), again.metrics) == (lost.read(FILE), lost.metrics)


def test_a_cell_says_the_same_whatever_else_is_in_the_grid(swept: Path, tmp_path: Path) -> None:
    alone = Store.open(str(tmp_path / "alone"))
    _, code = drive(alone, recipe(tmp_path / "r", epsilons=[0.1], deltas=[0.05], replicates=1), tmp_path / "out")
    assert code == 0
    cell = next(
        step
        for step in steps_of(swept)
        if step.at == {"epsilon": 0.1, "replicate": 0, "weights": "last", "delta": 0.05}
    )
    single = Ledger(alone).find(cell.step.key)
    assert single is not None
    assert single.read(FILE) == cell.step.read(FILE)
    assert Outcomes.from_bytes(single.read(FILE)).threat.epsilons == (0.05,)


def test_a_damaged_cell_is_left_out_alone_and_said_to_be_mended_by_verify(
    swept: Path, store: Store, tmp_path: Path
) -> None:
    cell = next(step for step in steps_of(swept) if step.at.get("delta") == 0.05 and step.at["epsilon"] == 0.1)
    (damaged,) = (tmp_path / "store" / "steps" / cell.step.key[:2] / cell.step.key).glob("*/outcomes.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    made = recipe(tmp_path / "again")
    run, code = drive(store, made, tmp_path / "out")
    assert code == 0
    report = made.workflow.report(finished_steps(store, run.id))
    left = {
        (entry["epsilon"], entry["delta"]): len(entry["replicates"])
        for entry in report.results
        if "low" in entry and entry["what"] == "cell"
    }
    assert left[0.1, 0.05] == 1
    assert sum(count == 2 for count in left.values()) == 11
    assert any("--verify" in note for note in report.notes)
    assert any("not all cells" in note for note in report.notes)
    assert any(cell.endswith(" 1/2") for row in report.rows for cell in row)


def test_best_and_last_networks_are_both_reported(tmp_path: Path) -> None:
    report = swept_in(
        tmp_path,
        weights=["last", "best"],
        epsilons=[0.1],
        deltas=[0.1],
        replicates=1,
        train__robust_validation={"examples": 50},
    )
    assert [cell["weights"] for cell in cells(tmp_path)] == ["last", "last", "best", "best"]
    assert any("Robust overfitting" in section.title for section in report.sections)


def test_a_chain_is_swept_at_every_sparsity(tmp_path: Path) -> None:
    chain = {"prune": {"fraction": 0.5}, "levels": 2, "every": 2}
    swept_in(tmp_path, **chain, epsilons=[0.05, 0.1], deltas=[0.05], replicates=1)
    found = {(cell["network"], cell["epsilon"], cell["delta"]): cell["density"] for cell in cells(tmp_path)}
    assert {network for network, _, _ in found} == {"level 0", "level 2"}
    assert found["level 2", 0.1, 0.05] == pytest.approx(0.25, abs=0.001)
    assert len(found) == 8


def test_stored_masks_are_swept_side_by_side(store: Store, tmp_path: Path) -> None:
    grid: dict[str, Any] = {"epsilons": [0.05], "deltas": [0.05], "replicates": 1}
    run, code = drive(store, recipe(tmp_path / "chain", prune={"fraction": 0.5}, levels=1, **grid), tmp_path / "out")
    assert code == 0
    (prune,) = (step.step.key for step in finished_steps(store, run.id) if step.kind == "prune")
    plan = plan_of(recipe(tmp_path / "masks", masks={"half": prune[:12]}, **grid), store)
    (train,) = (step.handle for step in plan.stored if step.handle.task.kind == "train")
    assert train.inputs["mask"].key == prune, "the chain has trained under this mask"
    other = recipe(tmp_path / "masks", masks={"half": prune[:12]}, **{**grid, "replicates": 2})
    assert sorted(step.handle.task.kind for step in plan_of(other, store).to_run) == ["evaluate", "evaluate", "train"]


def test_what_holds_no_mask_of_this_network_is_refused(swept: Path, store: Store, tmp_path: Path) -> None:
    training = next(step.step.key for step in steps_of(swept) if step.kind == "train")
    with pytest.raises(BadRequest, match=r"masks.m: step \w{12} is a 'train': it holds no mask"):
        plan_of(recipe(tmp_path, masks={"m": training[:12]}), store)


def test_analyses_come_with_the_sweep(tmp_path: Path) -> None:
    precision = {"after": ["hidden1"], "steps": [0.25, 1.0], "delta": 0.1}
    report = swept_in(tmp_path, epsilons=[0.1], deltas=[0.1], replicates=1, sensitivity=0.1, precision=precision)
    sections = {section.title.split()[0]: section for section in report.sections}
    assert sections["Gain"].rows[0][:3] == ["dense", "last", "0.1"]
    assert sections["Accuracy"].columns[-3:] == ["unrounded", "step 0.25", "step 1"]
    assert all(sections["Gain"].rows[0])
    assert all(sections["Accuracy"].rows[0])


def test_a_network_that_answers_one_class_is_warned_of(tmp_path: Path) -> None:
    """At radius 0.5 every image can be made the same grey one: nothing is left to learn but the commonest class."""
    report = swept_in(
        tmp_path,
        epsilons=[0.05, 0.5],
        deltas=[0.1],
        replicates=1,
        train__epochs=10,
        train__objective={"kind": "pgd", "epsilon": 0.5},
    )
    assert [note[:30] for note in report.notes if "one class" in note] == ["warning, ε=0.5 replicate 0: th"]


def test_sensitivity_is_measured_in_the_norm_of_the_sweep(tmp_path: Path) -> None:
    objective = {"kind": "pgd", "epsilon": 1, "norm": "l2", "steps": 2}
    pgd = {"kind": "pgd", "norm": "l2", "steps": 3}
    made = recipe(
        tmp_path, train__objective=objective, epsilons=[1], deltas=[1.5], attacks=[pgd], sensitivity=1.5, replicates=1
    )
    plan = plan_of(made, Store.open("memory://"))
    (task,) = (step.handle.task for step in plan.steps if step.handle.task.kind == "filter-sensitivity")
    assert task.attack.norm == "l2"
