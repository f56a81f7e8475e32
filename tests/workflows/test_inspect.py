"""What `plan`, `runs` and `show` say of a store, at rest and while a run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.ledger import Ledger, folder_of
from cluster.runs import EventLog, Run, named_steps, write_plan
from cluster.standing import LINGER
from cluster.store import Store
from tests.cluster.scenes import age
from tests.workflows.conftest import record_run, write_recipe
from workflows.command.inspect import (
    LISTED,
    chosen_runs,
    plan_records,
    plan_table,
    recorded_recipe,
    run_record,
    run_view,
    runs_records,
    runs_table,
)
from workflows.command.launch import plan_of, run_id_of
from workflows.command.recipe import BadRequest, Recipe, load_recipe


def shown(renderable: Any) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def small(folder: Path, *overrides: str) -> Recipe:
    return load_recipe(str(write_recipe(folder)), overrides)


def only_run(store: Store) -> str:
    (run_id,) = store.folders("runs")
    return run_id


def key_of_kind(store: Store, kind: str) -> str:
    return next(key for key, step in named_steps(store, only_run(store)).items() if step["task"]["kind"] == kind)


def events(store: Store, *told: dict[str, Any]) -> None:
    log = EventLog(store, only_run(store), "driver")
    for event in told:
        log.write(**event)
    log.close()


def test_a_plan_counts_what_is_stored_and_what_that_saves(finished: Store, tmp_path: Path) -> None:
    same = small(tmp_path)
    record = plan_records(same, plan_of(same, finished))
    assert (record["stored"], record["to_run"], record["run"]) == (8, 0, only_run(finished))
    assert record["sample_steps_saved"] == 3 * 200  # three trainings of an epoch of 200 examples
    longer = small(tmp_path, "levels=2")
    record = plan_records(longer, plan_of(longer, finished))
    assert 0 < record["stored"] < len(record["steps"]) == record["stored"] + record["to_run"]
    assert {step["kind"] for step in record["steps"] if not step["stored"]} >= {"train", "prune", "evaluate"}
    assert json.loads(json.dumps(record)) == record


def test_a_short_plan_is_listed_and_a_long_one_is_grouped_without_losing_a_step(disk: Store, tmp_path: Path) -> None:
    short, long = small(tmp_path), small(tmp_path, "levels=8", "replicates=3")
    plan = plan_of(short, disk)
    text = shown(plan_table(short, plan))
    assert all(step.handle.key[:12] in text for step in plan.steps)
    plan = plan_of(long, disk)
    assert len(plan.steps) > LISTED
    text = shown(plan_table(long, plan))
    lines = [
        line.split()
        for line in text.splitlines()
        if " steps " in line and "to run" in line and "run " + long.name not in line
    ]
    assert sum(int(line[-3]) for line in lines) == len(plan.steps)
    assert len(lines) < 10
    assert "replicate 0 to 2, level 0 to 8" in text


def test_a_finished_run_is_shown_with_its_results(finished: Store) -> None:
    run_id = only_run(finished)
    record = run_record(finished, run_id[:8])
    assert (record["id"], record["state"], record["failures"]) == (run_id, "finished", [])
    assert {step["state"] for step in record["steps"]} == {"stored"}
    assert [point["arm"] for point in record["results"]] == ["ticket", "ticket", "shuffled"]
    assert json.loads(json.dumps(record)) == record
    text = shown(run_view(finished, run_id))
    assert "8 of 8 steps stored" in text
    assert "Iterative magnitude pruning" in text
    assert run_id in shown(runs_table(runs_records(finished)))


def test_a_recorded_run_gives_back_the_recipe_that_names_it(finished: Store) -> None:
    recipe = recorded_recipe(finished, only_run(finished))
    assert run_id_of(recipe) == only_run(finished)
    assert not plan_of(recipe, finished).to_run


def test_a_run_that_was_planned_and_never_begun_is_stopped_with_all_steps_waiting(disk: Store, tmp_path: Path) -> None:
    record_run(disk, small(tmp_path))
    record = run_record(disk, only_run(disk))
    assert record["state"] == "stopped"
    assert {step["state"] for step in record["steps"]} == {"waiting"}


def test_a_run_with_a_live_lease_is_running_and_shows_its_progress(disk: Store, tmp_path: Path) -> None:
    record_run(disk, small(tmp_path))
    key = key_of_kind(disk, "train")
    ledger = Ledger(disk)
    lease = ledger.lease(key, "attempt")
    assert lease is not None
    ledger.beat(lease, progress=(3, 8, ""))
    record = run_record(disk, only_run(disk))
    assert (record["state"], record["steps_running"]) == ("running", 1)
    assert next(step for step in record["steps"] if step["key"] == key)["progress"] == [3, 8, ""]
    assert "3/8" in shown(run_view(disk, only_run(disk)))
    ledger.beat(lease, state="released")
    assert run_record(disk, only_run(disk))["state"] == "stopped"


def test_a_run_whose_driver_wrote_a_moment_ago_is_running_until_it_says_that_it_ended(
    disk: Store, tmp_path: Path
) -> None:
    record_run(disk, small(tmp_path))
    events(disk, {"event": "run", "state": "started", "driver": "a"})
    assert runs_records(disk)[0]["state"] == "running"
    age(disk, "runs", LINGER + 60)  # and then its machine was lost
    assert runs_records(disk)[0]["state"] == "stopped"
    events(disk, {"event": "run", "state": "ended", "driver": "a", "code": 130})
    assert runs_records(disk)[0]["state"] == "stopped"


def test_a_failed_step_is_shown_with_its_cause_its_log_and_the_command_that_reruns_it(
    disk: Store, tmp_path: Path
) -> None:
    record_run(disk, small(tmp_path))
    key, run_id = key_of_kind(disk, "train"), only_run(disk)
    failure = {"cause": "user", "message": "loss is NaN [at step 3]", "log": f"{folder_of(key)}/failure-a.txt"}
    step = {"event": "step", "key": key, "kind": "train", "at": {"replicate": 0, "level": 0}}
    end = {"event": "run", "state": "ended", "driver": "a", "code": 1}
    events(disk, {**step, "state": "started"}, {**step, "state": "failed", **failure}, end)
    record = run_record(disk, run_id)
    assert (record["state"], record["steps_failed"]) == ("failed", 1)
    (told,) = record["failures"]
    assert told.items() >= {**failure, "key": key, "where": "replicate 0, level 0"}.items()
    assert told["rerun"] == f"hedgerow resume {run_id} --store {disk.url}"
    text = shown(run_view(disk, run_id)).replace("\n", "")
    assert all(part in text for part in ("loss is NaN [at step 3]", failure["log"], "hedgerow resume"))
    events(disk, {**step, "state": "started"})  # it is tried again: the failure is history
    assert run_record(disk, run_id)["failures"] == []


def test_a_run_whose_recipe_is_no_longer_understood_is_shown_without_results(finished: Store) -> None:
    run = Run.load(finished, only_run(finished))
    recipe = {**run.record["recipe"], "abolished": 1}
    finished.put(f"runs/{run.id}/run.json", json.dumps({**run.record, "recipe": recipe}).encode())
    record = run_record(finished, run.id)
    assert record["results"] is None
    assert "abolished" in record["results_missing_because"]
    assert record["steps_stored"] == 8
    assert "no results: run small: abolished: unknown field" in shown(run_view(finished, run.id))
    with pytest.raises(BadRequest, match="abolished"):
        recorded_recipe(finished, run.id)


def test_a_damaged_manifest_is_shown_and_spoils_nothing_else(finished: Store) -> None:
    finished.put(f"{folder_of(key_of_kind(finished, 'shuffle-mask'))}/manifest.json", b"torn")
    record = run_record(finished, only_run(finished))
    assert [step["kind"] for step in record["steps"] if step["state"] == "damaged"] == ["shuffle-mask"]
    assert record["steps_stored"] == 7
    assert record["results"]


def test_runs_are_chosen_by_the_beginning_of_their_id(disk: Store) -> None:
    for run_id in ("imp-1", "imp-2", "colt-1"):
        Run.open(disk, run_id, {"name": run_id})
        write_plan(disk, run_id, [])
    assert {run.id for run in chosen_runs(disk, "")} == {"imp-1", "imp-2", "colt-1"}
    assert [run.id for run in chosen_runs(disk, "colt")] == ["colt-1"]
    with pytest.raises(BadRequest, match="several runs start with 'imp'; runs here: imp-1, imp-2"):
        chosen_runs(disk, "imp")
    with pytest.raises(BadRequest, match="its record holds no recipe"):
        recorded_recipe(disk, "colt")
    with pytest.raises(BadRequest, match="no run starts with 'x'"):
        run_record(disk, "x")
