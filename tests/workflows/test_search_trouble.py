"""Searches that meet trouble: stores that stumble, notes that are torn, code that changes, trials that fail late."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.ledger import Ledger, folder_of
from cluster.plan import make_plan
from cluster.runs import Run, finished_steps
from cluster.store import Store, StoreError
from search_spaces.goals import Objective
from search_spaces.records import frozen_trial
from search_spaces.space import Space
from tasks.attacks.fgsm import FGSM
from tasks.task import Result
from tasks.training.train import Train
from tests.workflows.conftest import Inline, drive, record_run
from tests.workflows.searches import CHAIN, fronts, load_search, searched, told
from workflows.command.driver import Driver
from workflows.command.launch import plan_of
from workflows.command.options import Options
from workflows.search_steps import OUTCOMES, Note, Spending
from workflows.stopping import wrong_stops

DOMINATED = {"kind": "dominated", "field": "levels", "rungs": [1], "warm_up": 1}


def notes(store: Store, run: Run, kind: str) -> list[str]:
    """Keys of the search's own steps of a kind, in the order of their numbers."""
    found = [step.step for step in finished_steps(store, run.id) if step.kind == kind]
    return [step.key for step in sorted(found, key=lambda step: int(step.manifest["task"]["number"]))]


def forget(store: Store, key: str) -> None:
    store.delete(list(store.paths(folder_of(key))))


def test_a_store_that_stumbles_ends_the_search_and_the_same_trial_is_run_again(
    tmp_path: Path, disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = {"budget": {"trials": 1}, "parallel": 1, "start": [{"levels": 3, "train.objective.epsilon": 0.1}]}
    run, _ = searched(disk, tmp_path, **one)
    (before,) = told(disk, run)
    trainings = [step.step.key for step in finished_steps(disk, run.id) if step.kind == "train"]
    for key in [*notes(disk, run, "trial"), *notes(disk, run, "front")]:
        forget(disk, key)
    find, stumbled = Ledger.find, []

    def stumbling(self: Ledger, key: str) -> Any:
        in_run = threading.current_thread().name.startswith("store_")  # and not in the plan
        if key == trainings[-1] and not stumbled and in_run:
            stumbled.append(key)
            raise StoreError("away for a moment")
        return find(self, key)

    monkeypatch.setattr(Ledger, "find", stumbling)
    monkeypatch.setattr("cluster.engine.STORE_PATIENCE", 0.0)
    _, code = drive(disk, load_search(tmp_path, **one), tmp_path / "out")
    assert stumbled
    assert code == 3
    again, code = drive(disk, load_search(tmp_path, **one), tmp_path / "out")
    assert code == 0
    assert told(disk, again) == [before]


@pytest.mark.parametrize("verify", [False, True])
def test_notes_that_are_torn_or_lost_are_put_down_again(tmp_path: Path, disk: Store, verify: bool) -> None:
    changes = {"stopping": DOMINATED, "budget": {"trials": 4}, "parallel": 1}
    run, _ = searched(disk, tmp_path, **changes)
    before, closing = told(disk, run), fronts(disk, run)
    trials, ledger = notes(disk, run, "trial"), Ledger(disk)
    note = ledger.find(trials[0])
    assert note is not None
    disk.put(note.manifest["files"][OUTCOMES]["path"], b"torn")
    disk.put(f"{folder_of(trials[1])}/manifest.json", b"torn")
    disk.put(f"{folder_of(notes(disk, run, 'ask')[2])}/manifest.json", b"torn")
    forget(disk, trials[2])
    recipe = load_search(tmp_path, **changes)
    assert plan_of(recipe, disk, verify=verify).steps
    run = record_run(disk, recipe)
    driver = Driver(recipe, disk, Inline(), Options(disk.url, tmp_path / "out", verify=verify), run)
    assert asyncio.run(driver.drive()) == 0
    assert told(disk, run) == before
    assert fronts(disk, run) == closing


def test_rungs_may_be_shares(tmp_path: Path, disk: Store) -> None:
    base = {**CHAIN, "levels": None, "sparsity": 0.8}
    space = {"parameters": {"train.objective.epsilon": {"choice": [0.05, 0.1]}}}
    stopping = {"kind": "dominated", "field": "sparsity", "rungs": [0.4, 0.7]}
    run, _ = searched(disk, tmp_path, base=base, space=space, stopping=stopping, budget={"trials": 2})
    assert [trial["state"] for trial in told(disk, run)] == ["complete", "complete"]
    assert all(trial["rungs"].keys() == {"0.4", "0.7"} for trial in told(disk, run))


def test_rungs_keep_their_order_whatever_their_names() -> None:
    space = Space.load({"parameters": {"levels": {"int": [1, 9]}}})
    record = {"state": "stopped", "rungs": {"120": {"clean": 0.9}, "60": {"clean": 0.1}}}
    trial = frozen_trial(space, [Objective(maximise="clean")], [], 0, {"levels": 3}, record)
    assert trial.intermediate_values == {0: 0.1, 1: 0.9}
    assert trial.value == 0.9


def test_a_budget_of_sample_steps_ends_where_nothing_costs_anything_any_more() -> None:
    spending = Spending()
    spending.add({"a": 100, "b": 50})
    spending.add({"a": 100})
    assert not spending.reaches(151)
    assert spending.reaches(150)
    for _ in range(Spending.IDLE):
        spending.add({"b": 50})
    assert spending.reaches(10**9)


def test_what_an_earlier_version_of_the_code_found_is_told_anew(
    tmp_path: Path, disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, search = searched(disk, tmp_path, budget={"trials": 3})
    assert len(told(disk, run)) == 3
    monkeypatch.setattr(FGSM, "version", 2)
    again, search = searched(disk, tmp_path, budget={"trials": 3})
    assert again.id == run.id
    assert len(notes(disk, again, "trial")) == 6
    reported = search.report(finished_steps(disk, again.id)).results
    assert [result["number"] for result in reported] == [0, 1, 2]
    assert any("3 trials" in note for note in search.report(finished_steps(disk, again.id)).notes)


def failing(monkeypatch: pytest.MonkeyPatch, fails: Callable[[Train], bool]) -> None:
    """Trainings of this kind raise."""
    run = Train.run

    def or_fail(self: Train, context: Any, **inputs: Any) -> Result:
        if fails(self):
            raise ValueError("the loss is NaN")
        return run(self, context, **inputs)

    monkeypatch.setattr(Train, "run", or_fail)


def test_a_stopped_trial_that_fails_on_its_way_to_the_end_does_not_keep_the_search_from_closing(
    tmp_path: Path, disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {"parameters": {"train.optimizer.learning_rate": {"choice": [0.05, 1e-6]}}}
    stopping = {"kind": "median", "field": "levels", "rungs": [1], "warm_up": 2, "audit": 1}
    small = {
        "base": {**CHAIN, "levels": 2}, "space": space, "stopping": stopping, "objectives": [{"maximise": "clean"}],
        "sampler": "random", "budget": {"trials": 8}, "parallel": 1,
    }  # fmt: skip
    rates: list[float] = []

    def late(train: Train) -> bool:
        """The third training at the small rate: the last level, which only the audit asks for."""
        rates.append(train.optimizer.learning_rate)
        return rates[-1] == 1e-6 and rates.count(1e-6) > 2

    failing(monkeypatch, late)
    run, _ = searched(disk, tmp_path, **small)
    (closing,) = fronts(disk, run)
    assert (closing["audit"]["wrong"], closing["audit"]["of"]) == (0, 1)


def test_a_failed_trial_reads_the_same_whoever_met_the_failure_first(
    tmp_path: Path, disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, lambda train: train.objective.identity().get("epsilon") == 0.1)
    start = [{"levels": levels, "train.objective.epsilon": 0.1} for levels in (1, 2)]
    start.append({"levels": 1, "train.objective.epsilon": 0.05})
    run, _ = searched(disk, tmp_path, start=start, budget={"trials": 3})
    messages = [trial["message"] for trial in told(disk, run)[:2]]
    assert messages[0] == messages[1]
    assert "the loss is NaN" in messages[0]


def test_a_search_whose_trials_all_failed_ends_so_again(
    tmp_path: Path, disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, lambda train: True)
    recipe = load_search(tmp_path, budget={"trials": 2})
    _, code = drive(disk, recipe, tmp_path / "out")
    plan = asyncio.run(make_plan(disk, recipe.workflow.run))
    assert code == 1
    assert "all 2 trials failed" in str(plan.failure)


def test_a_budget_that_is_spent_at_once_asks_for_nothing(tmp_path: Path, disk: Store) -> None:
    run, _ = searched(disk, tmp_path, budget={"hours": 1e-12})
    assert told(disk, run) == []


def test_a_step_that_another_went_on_from_is_paid_for_once(tmp_path: Path, disk: Store) -> None:
    train = {"kind": "train", **CHAIN["train"]}
    base = {"kind": "evaluate", "models": {"net": train}, "attacks": ["fgsm"], "epsilons": [0.1], "examples": 20}
    stopping = {"kind": "median", "field": "models.net.stop_at", "rungs": [1, 3], "warm_up": 9}
    run, _ = searched(
        disk, tmp_path, base=base, space={"parameters": {"models.net.seed": {"int": [0, 1]}}}, stopping=stopping,
        objectives=[{"maximise": "clean"}], budget={"trials": 1}, parallel=1,
    )  # fmt: skip
    (trial,) = told(disk, run)
    assert trial["sample_steps"] == trial["figures"]["sample-steps"] == 200 * 2


def test_a_stopped_trial_that_failed_later_counts_as_rightly_stopped() -> None:
    best = [Objective(maximise="clean")]
    assert wrong_stops(best, [None, {"clean": 0.9}], [{"clean": 0.5}])["wrong"] == 1
    assert wrong_stops(best, [None, {"clean": 0.1}], [{"clean": 0.5}])["of"] == 2


def test_a_driver_that_dies_before_any_of_its_notes_leaves_nothing_out(
    tmp_path: Path, disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"stopping": DOMINATED, "budget": {"trials": 4}}
    run, _ = searched(disk, tmp_path, **changes)
    before, closing = told(disk, run), fronts(disk, run)
    put_down = Note.run
    for death in (1, 2, 5, 8):  # of nine
        for kind in ("ask", "trial", "front"):
            for key in notes(disk, run, kind):
                forget(disk, key)
        left = iter(range(death))

        def dying(self: Note, context: Any, left: Any = left, **inputs: Any) -> Result:
            if context is not None and next(left, None) is None:  # a plan looks without a context
                raise StoreError("dead")
            return put_down(self, context, **inputs)

        monkeypatch.setattr(Note, "run", dying)
        _, died = drive(disk, load_search(tmp_path, **changes), tmp_path / "out")
        monkeypatch.setattr(Note, "run", put_down)
        run, code = drive(disk, load_search(tmp_path, **changes), tmp_path / "out")
        assert (died, code) == (3, 0)
        assert told(disk, run) == before
        assert fronts(disk, run) == closing
