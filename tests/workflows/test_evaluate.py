"""Evaluation as a workflow: shards, stored steps, checkpoints, comparisons, and mistakes found before work starts."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cluster.follower import chain_id_of
from cluster.ledger import Ledger, Published
from cluster.runs import Finished, finished_steps
from cluster.store import Store
from tasks.data.mnist_mini import MnistMini
from tasks.measuring.outcomes import FILE
from tasks.models.lenet import LeNet300100
from tests.workflows import chains
from tests.workflows.conftest import drive, write_recipe
from tests.workflows.evaluations import TRAIN, key_of_training, of_kind, outcomes, planned, recipe, steps_of, stored
from workflows.command.launch import plan_of
from workflows.command.recipe import BadRequest, load_recipe


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe and the store of its finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("evaluated")
    run, code = drive(Store.open(str(folder / "store")), recipe(folder), folder / "out")
    assert code == 0, run
    return folder


@pytest.fixture
def finished(small_run: Path, tmp_path: Path) -> Store:
    """A store of one's own with that run."""
    return Store.open(str(shutil.copytree(small_run / "store", tmp_path / "finished")))


def test_every_model_is_measured_in_shards_that_are_put_together_again(small_run: Path, tmp_path: Path) -> None:
    steps = steps_of(small_run, Store.open(str(small_run / "store")))
    merged = of_kind(steps, "merge-outcomes")
    shards = of_kind(steps, "evaluate")
    assert list(merged) == ["one", "two"]
    assert list(shards) == [f"{model}, shard {shard}" for model in merged for shard in range(3)]
    assert [len(outcomes(shards[f"two, shard {shard}"])) for shard in range(3)] == [16, 16, 8]
    whole = Store.open(str(shutil.copytree(small_run / "store", tmp_path / "whole")))
    single = recipe(tmp_path, shard_size=1000, corruptions=[], calibrate=False)
    run, code = drive(whole, single, tmp_path / "out")
    assert code == 0
    for step in finished_steps(whole, run.id):
        if step.kind == "merge-outcomes":
            assert step.step.read(FILE) == merged[step.at["model"]].read(FILE), "sharding changes no outcome"


def test_a_transfer_feeds_the_network_it_comes_from_and_leaves_that_one_alone(small_run: Path) -> None:
    store = Store.open(str(small_run / "store"))
    handles = planned(store, recipe(small_run))
    assert set(handles["evaluate two, shard 1"].inputs) == {"trained", "one"}
    assert handles["evaluate two, shard 1"].inputs["one"] is handles["train one"]
    assert set(handles["evaluate one, shard 1"].inputs) == {"trained"}
    assert len(handles["evaluate one, shard 1"].task.attacks) == 1
    merged = of_kind(steps_of(small_run, store), "merge-outcomes")
    assert outcomes(merged["one"]).threat.attacks == ("fgsm",)
    assert outcomes(merged["two"]).threat.attacks == ("fgsm", "transfer-one")


def test_the_rows_of_a_model_belong_to_one_tracked_run() -> None:
    ids = {chain_id_of("run", {"model": "one", **more}) for more in ({}, {"shard": 1}, {"corruption": "fog"})}
    assert len(ids) == 1
    assert chain_id_of("run", {"model": "two"}) not in ids


def test_a_stored_step_is_measured_as_if_its_training_were_written_out(
    small_run: Path, finished: Store, tmp_path: Path
) -> None:
    before = {handle.key for handle in planned(finished, recipe(small_run)).values()}
    plan = plan_of(stored(small_run, tmp_path), finished)
    assert not plan.to_run
    assert {step.handle.key for step in plan.stored} < before
    run, code = drive(finished, stored(small_run, tmp_path), tmp_path / "out")
    assert code == 0
    assert next(step.kind for step in finished_steps(finished, run.id)) == "train", "the run names what it reads"


def test_a_stored_step_can_be_measured_on_other_data(small_run: Path, finished: Store, tmp_path: Path) -> None:
    other = stored(small_run, tmp_path, data={"kind": "mnist-mini", "validation": 50})
    handle = planned(finished, other)["evaluate mine, shard 0"]
    assert handle.task.data == MnistMini(validation=50)
    assert handle.task.architecture == LeNet300100()
    fewer = {"kind": "mnist-mini", "partition": {"kind": "class-ranges", "parts": 2, "index": 0}}
    with pytest.raises(
        BadRequest,
        match=r"models.mine: step \w{12} has 266,610 parameters, but lenet-300-100 for images of 1x28x28 in 5 classes",
    ):
        plan_of(stored(small_run, tmp_path, data=fewer), finished)


def test_a_checkpoint_of_ones_own_is_measured(small_run: Path, tmp_path: Path) -> None:
    store = Store.open(str(small_run / "store"))
    trained = Ledger(store).find(key_of_training(small_run))
    assert trained is not None
    (tmp_path / "mine.safetensors").write_bytes(trained.read("weights.safetensors"))
    model = {**{name: TRAIN[name] for name in ("data", "architecture")}, "kind": "import-weights"}
    made = recipe(
        tmp_path,
        models={"mine": {**model, "path": str(tmp_path / "mine.safetensors")}},
        attacks=["fgsm"],
        corruptions=[],
    )
    own = Store.open(str(tmp_path / "store"))
    run, code = drive(own, made, tmp_path / "out")
    assert code == 0
    merged = of_kind(finished_steps(own, run.id), "merge-outcomes")["mine"]
    assert merged.read(FILE) == of_kind(steps_of(small_run, store), "merge-outcomes")["one"].read(FILE)
    (tmp_path / "mine.safetensors").unlink()
    again = {"kind": "stored", "step": of_kind(finished_steps(own, run.id), "import-weights")["mine"].key}
    planned_again = plan_of(recipe(tmp_path, models={"mine": again}, attacks=["fgsm"], corruptions=[]), own)
    assert not planned_again.to_run, "once imported, the file is not needed"


def test_the_report_states_all_that_its_figures_depend_on(small_run: Path) -> None:
    steps = steps_of(small_run, Store.open(str(small_run / "store")))
    made = recipe(small_run).workflow.report(steps)
    merged = of_kind(steps, "merge-outcomes")
    found = outcomes(merged["two"])
    assert made.title == "Robustness of one, two on mnist-mini"
    assert [row[:2] for row in made.rows] == [[name, at] for name in merged for at in ("clean", "0.02", "0.05")]
    standing = int(found.standing(0.05).sum())
    at = next(point for point in made.results if point["model"] == "two" and point.get("epsilon") == 0.05)
    assert at["accuracy"] == standing / 40
    assert at["low"] < at["accuracy"] < at["high"]
    assert at["step"] == merged["two"].key
    assert sum(at["broken_by"].values()) == int((found.broken_at == torch.tensor(0.05)).sum())
    notes = "\n".join(made.notes)
    for said in (
        "within ε of 0.02, 0.05 in norm linf",
        "fgsm(); transfer(source one, steps 3, relative_step None, decay 1.0)",
        "seed of examples and of all noise: 0",
        "two: 40 examples of the test split, drawn evenly over the classes with seed 0",
        f"outcomes.safetensors of step {merged['two'].key[:12]}",
    ):
        assert said in notes
    about = made.record()["about"]
    assert about["threat"] == {"norm": "linf", "epsilons": [0.02, 0.05], "box": [0, 1]}
    assert [attack["kind"] for attack in about["attacks"]] == ["fgsm", "transfer"]
    assert (about["seed"], about["split"]) == (0, "test")
    for name, step in merged.items():
        assert about["models"][name]["examples"] == outcomes(step).indices.tolist()
        assert about["models"][name]["warnings"] == step.metrics["warnings"]
        for warning in step.metrics["warnings"]:
            assert f"warning, {name}: {warning}" in made.notes


def test_what_few_classes_change_is_told_by_the_data_and_not_by_the_drawn_examples(tmp_path: Path, disk: Store) -> None:
    two = {**TRAIN["data"], "partition": {"kind": "class-ranges", "parts": 5, "index": 0}}
    models = {"ten": TRAIN, "pair": {**TRAIN, "data": two}}
    attacks = [{"kind": "apgd-t", "steps": 2}, {"kind": "apgd", "loss": "dlr", "steps": 2}]
    few = recipe(tmp_path, models=models, attacks=attacks, examples=4, corruptions=[], calibrate=False)
    run, code = drive(disk, few, tmp_path / "out")
    assert code == 0
    merged = of_kind(finished_steps(disk, run.id), "merge-outcomes")
    assert outcomes(merged["ten"]).labels.max() < 9
    assert not [line for line in merged["ten"].metrics["warnings"] if "classes" in line]
    assert [line for line in merged["pair"].metrics["warnings"] if "classes" in line or "DLR" in line] == [
        "apgd-t climbs the difference of two logits: targeted DLR needs 4 classes, the data have 2",
        "apgd-t tries 1 targets, not 9: the data have 2 classes",
        "apgd climbs the margin: DLR needs 3 classes, the data have 2",
    ]


def test_the_report_compares_in_pairs_and_shows_corruptions_and_calibration(small_run: Path, tmp_path: Path) -> None:
    steps = steps_of(small_run, Store.open(str(small_run / "store")))
    made = recipe(small_run).workflow.report(steps)
    merged = {name: outcomes(step) for name, step in of_kind(steps, "merge-outcomes").items()}
    apart = merged["two"].standing(0.02).int() - merged["one"].standing(0.02).int()
    compared = next(point for point in made.results if point.get("against") == "one" and point["epsilon"] == 0.02)
    assert compared["difference"] == pytest.approx(float(apart.sum()) / 40)
    assert (compared["second_only"], compared["first_only"]) == (int((apart == 1).sum()), int((apart == -1).sum()))
    pairs, corruptions, calibration = made.sections
    assert [row[1] for row in pairs.rows] == ["clean", "0.02", "0.05"]
    assert pairs.rows[1][4:6] == [str(compared["second_only"]), str(compared["first_only"])]
    assert pairs.title.startswith("Compared with one on the same examples")
    assert [row[:2] for row in corruptions.rows] == [
        [name, kind] for name in merged for kind in ("brightness", "contrast")
    ]
    assert [row[1] for row in calibration.rows] == ["clean", "0.02", "0.05"] * 2
    curve = made.curves[1]
    assert [x for x, _ in curve.points] == [0, 0.02, 0.05]
    assert all(low <= y <= high for (_, y), (_, low, high) in zip(curve.points, curve.band, strict=True))
    written = {path.name: path for path in made.write(tmp_path)}
    assert {"figure.png", "table.md", "results.json"} == set(written)
    assert "## Compared with one on the same examples" in written["table.md"].read_text()


def test_a_report_of_what_is_finished_so_far_needs_no_damaged_file(small_run: Path, finished: Store) -> None:
    steps = steps_of(small_run, finished)
    workflow = recipe(small_run).workflow
    half = workflow.report([step for step in steps if step.at != {"model": "two"} or step.kind != "merge-outcomes"])
    assert {row[0] for row in half.rows} == {"one"}
    assert workflow.report([]).rows == []
    older = of_kind(steps_of(small_run, finished), "merge-outcomes")["one"]
    again = workflow.report([*steps, Finished({"model": "two"}, older), *steps])
    assert again.record() == workflow.report(steps).record(), "what an earlier version left at a place does not count"
    merged = of_kind(steps, "merge-outcomes")["two"]
    finished.put(merged.manifest["files"][FILE]["path"], b"torn")
    torn = workflow.report(steps)
    assert len(torn.rows) == 6
    assert any(note.startswith("two and one are not compared: step ") for note in torn.notes)


def test_the_fifteen_corruptions_have_a_short_name_and_a_mean(tmp_path: Path, disk: Store) -> None:
    made = recipe(tmp_path, corruptions="benchmark", models={"one": TRAIN}, attacks=["fgsm"])
    kinds = [name.split(", ")[1] for name in planned(disk, made) if name.startswith("evaluate-corrupted")]
    assert len(set(kinds)) == 15
    steps = []
    for number, kind in enumerate(kinds):
        severities = [{"severity": severity, "accuracy": (number % 2) / severity} for severity in (1, 2)]
        metrics = {"examples": 4, "corruptions": {kind: {"severities": severities}}}
        manifest = {"task": {"kind": "evaluate-corrupted"}, "metrics": metrics}
        steps.append(Finished({"model": "one", "corruption": kind}, Published("ab" * 32, manifest, disk)))
    rows = made.workflow.report(steps).sections[0].rows
    assert rows[-1] == ["one", "mean of the 15", "46.7", "23.3", "35.0"]
    assert len(made.workflow.report(steps[1:]).sections[0].rows) == 14, "no mean of the 15 without all of them"


KILLED = """
kind: evaluate
models:
  one:
    kind: train
    data: {kind: mnist-mini, validation: 200, subset: 500}
    architecture: lenet-300-100
    optimizer: {kind: sgd, learning_rate: 0.1}
    epochs: 2
attacks: [{kind: pgd, steps: 50, restarts: 4}]
epsilons: [0.02, 0.05]
examples: 160
shard_size: 80
"""
DRIVER = """
import asyncio, sys
from pathlib import Path
from cluster.store import Store
from tests.workflows.conftest import Inline, record_run
from workflows.command.driver import Driver
from workflows.command.options import Options
from workflows.command.recipe import load_recipe
recipe, store = load_recipe(sys.argv[1]), Store.open(sys.argv[2])
options = Options(store.url, Path(sys.argv[2]), checkpoint=0.01)
sys.exit(asyncio.run(Driver(recipe, store, Inline(), options, record_run(store, recipe)).drive()))
"""


def kill_in_the_middle_of_a_shard(path: Path, folder: Path) -> str:
    """Starts the recipe in a process of its own, and kills that when a shard has saved where it is; says which."""
    command = [sys.executable, "-c", DRIVER, str(path), str(folder)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as process:
        while process.poll() is None:
            time.sleep(0.005)
            for checkpoint in folder.glob("steps/*/*/0001/checkpoint"):
                key = checkpoint.parents[1].name
                lease = Ledger(Store.open(str(folder))).current_lease(key)
                if lease is not None and lease.record["task"]["kind"] == "evaluate":
                    process.kill()
                    return key
    raise AssertionError("it ended before it could be killed")


def test_a_killed_evaluation_ends_with_the_same_outcomes(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, KILLED, "killed")
    for folder in (tmp_path / "undisturbed", tmp_path / "killed"):
        folder.mkdir()
    run, code = drive(Store.open(str(tmp_path / "undisturbed" / "store")), load_recipe(str(path)), tmp_path)
    assert code == 0, run
    struck = kill_in_the_middle_of_a_shard(path, tmp_path / "killed" / "store")
    again, code = drive(Store.open(str(tmp_path / "killed" / "store")), load_recipe(str(path)), tmp_path)
    assert (again.id, code) == (run.id, 0)
    assert chains.attempts_of(tmp_path / "killed")[struck] == 2
    assert chains.results_of(tmp_path / "killed") == chains.results_of(tmp_path / "undisturbed")


@pytest.mark.slow
def test_evaluation_on_ray_survives_kills_of_workers_drivers_and_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chains, "RECIPE", KILLED)
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
    assert chains.run_chain(tmp_path / "undisturbed").returncode == 0
    assert chains.finish_under_fire(tmp_path / "killed", seed=1)
    assert chains.results_of(tmp_path / "killed") == chains.results_of(tmp_path / "undisturbed")
