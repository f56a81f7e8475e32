"""Where a step comes from, and why a stored one does not serve instead of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.ledger import Ledger, folder_of
from cluster.plan import PlannedStep
from cluster.runs import EventLog, Run, write_plan
from cluster.store import Store
from tests.workflows.conftest import record_run, write_recipe
from workflows.command.explain import explain_step, explanation_text
from workflows.command.launch import plan_of
from workflows.command.recipe import BadRequest, load_recipe


def steps_of(store: Store, folder: Path, *overrides: str) -> tuple[Run, dict[str, PlannedStep]]:
    """Plans and records a variant; its steps by kind and place."""
    recipe = load_recipe(str(write_recipe(folder)), overrides)
    run = record_run(store, recipe)
    return run, {f"{s.handle.task.kind} {[*s.handle.at.values()]}": s for s in plan_of(recipe, store).steps}


def reasons(store: Store, step: PlannedStep) -> dict[str, tuple[object, object]]:
    nearest = explain_step(store, step.handle.key)["nearest"]
    return {found["field"]: (found["stored"], found["wanted"]) for found in nearest["differences"]}


def test_a_published_step_is_explained_by_what_it_is_and_where_it_comes_from(finished: Store, tmp_path: Path) -> None:
    run, steps = steps_of(finished, tmp_path)
    pruned, trained = steps["prune [0, 0]"].handle.key, steps["train [0, 0]"].handle.key
    explanation = explain_step(finished, pruned[:10])
    assert (explanation["key"], explanation["state"], explanation["resumed"]) == (pruned, "stored", False)
    assert explanation["inputs"]["trained"] == {"key": trained, "step": "train replicate 0, level 0"}
    assert explanation["runs"] == [{"run": run.id, "where": "replicate 0, level 0"}]
    assert explanation["environment"].keys() >= {"python", "torch", "threads"}
    assert [file["intact"] for file in explanation["files"]] == [True]
    assert len(explanation["attempts"]) == 1
    assert json.loads(json.dumps(explanation)) == explanation
    text = explanation_text(explanation)
    assert all(part in text for part in (pruned, "fraction: 0.5", trained[:12], run.id, "mask.safetensors", "intact"))


def test_a_file_that_was_altered_is_named(finished: Store, tmp_path: Path) -> None:
    _, steps = steps_of(finished, tmp_path)
    key = steps["prune [0, 0]"].handle.key
    published = Ledger(finished).find(key)
    assert published is not None
    finished.put(published.manifest["files"]["mask.safetensors"]["path"], b"other bytes")
    explanation = explain_step(finished, key)
    assert [file["intact"] for file in explanation["files"]] == [False]
    assert "mask.safetensors is damaged: its bytes are not those that were published" in explanation_text(explanation)


def test_a_step_is_not_reused_because_of_the_fields_that_differ(finished: Store, tmp_path: Path) -> None:
    _, steps = steps_of(
        finished, tmp_path, "train.optimizer.learning_rate=0.2", "train.objective={kind: pgd, epsilon: 0.1}"
    )
    differing = reasons(finished, steps["train [0, 0]"])
    assert differing["optimizer.learning_rate"] == (0.05, 0.2)
    assert differing["objective.kind"] == ("(default)", "pgd")
    assert differing["objective.epsilon"] == ("(default)", 0.1)
    assert not any(field.startswith("data") for field in differing)


def test_a_difference_upstream_is_named_once_where_it_arose(finished: Store, tmp_path: Path) -> None:
    _, steps = steps_of(finished, tmp_path, "train.epochs=2")
    assert reasons(finished, steps["evaluate [0, 1, 'shuffled']"]) == {"trained.epochs": (1, 2)}
    assert reasons(finished, steps["shuffle-mask [0, 1, 'shuffled']"]) == {"mask.trained.epochs": (1, 2)}
    assert reasons(finished, steps["train [0, 1]"]) == {"epochs": (1, 2)}


def test_a_later_level_is_compared_with_the_step_nearest_to_it(finished: Store, tmp_path: Path) -> None:
    _, steps = steps_of(finished, tmp_path, "levels=2")
    explanation = explain_step(finished, steps["train [0, 2]"].handle.key)
    assert explanation["state"] == "waiting"
    assert explanation["nearest"]["step"].startswith("train replicate 0, level")
    assert "never started" in explanation_text(explanation)


def test_a_new_version_is_a_reason(finished: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.pruning.prune import Prune

    monkeypatch.setattr(Prune, "version", 2)
    _, steps = steps_of(finished, tmp_path)
    assert reasons(finished, steps["prune [0, 0]"]) == {"version": ("(default)", 2)}


def test_nothing_of_the_kind_is_stored(disk: Store, tmp_path: Path) -> None:
    _, steps = steps_of(disk, tmp_path)
    explanation = explain_step(disk, steps["train [0, 0]"].handle.key)
    assert explanation["nearest"] is None
    assert "nothing to reuse" in explanation_text(explanation)


def test_running_stopped_and_failed_are_told_apart(disk: Store, tmp_path: Path) -> None:
    run, steps = steps_of(disk, tmp_path)
    handle = steps["train [0, 0]"].handle
    ledger = Ledger(disk)
    lease = ledger.lease(handle.key, "attempt")
    assert lease is not None
    ledger.beat(lease, progress=(2, 5, ""))
    assert "running 2/5" in explanation_text(explain_step(disk, handle.key))
    ledger.save_checkpoint(lease, b"state")
    ledger.beat(lease, state="released", saves=1)
    text = explanation_text(explain_step(disk, handle.key))
    assert "nobody is at work on it" in text
    assert "goes on from a checkpoint" in text
    log = EventLog(disk, run.id, "driver")
    log.write(
        "step", state="failed", key=handle.key, kind="train", at={}, cause="oom", message="too big", log="steps/x.txt"
    )
    log.close()
    text = explanation_text(explain_step(disk, handle.key))
    assert "failed (oom): too big" in text
    assert "steps/x.txt" in text


def test_a_resumed_publication_says_so_and_counts_its_attempts(disk: Store) -> None:
    ledger, key = Ledger(disk), "ab" * 32
    for attempt in (1, 2):
        lease = ledger.lease(key, f"attempt-{attempt}")
        assert lease is not None
        if attempt == 1:
            ledger.beat(lease, state="released", saves=3)
    manifest = {"task": {"kind": "toy"}, "inputs": {}, "metrics": {}, "environment": {}, "seconds": 1.5}
    ledger.publish(lease, {}, manifest)
    ledger.beat(lease, state="done")
    explanation = explain_step(disk, key)
    assert explanation["resumed"]
    assert [attempt["checkpoints"] for attempt in explanation["attempts"]] == [3, 0]
    assert "attempts: 2; it went on from a checkpoint" in explanation_text(explanation)


def test_a_step_that_lost_its_manifest_says_that_it_is_damaged(finished: Store, tmp_path: Path) -> None:
    _, steps = steps_of(finished, tmp_path)
    key = steps["prune [0, 0]"].handle.key
    finished.put(f"{folder_of(key)}/manifest.json", b"{}")
    text = explanation_text(explain_step(finished, key))
    assert "manifest.json is damaged" in text


@pytest.mark.parametrize(
    ("prefix", "message"),
    [("xyz", "'xyz' is no step's key"), ("", "is no step's key"), ("0" * 20, "no step starts with '0000")],
)
def test_a_prefix_of_no_step_is_refused(finished: Store, prefix: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        explain_step(finished, prefix)


def test_an_ambiguous_prefix_is_refused_with_the_choice(disk: Store) -> None:
    ledger = Ledger(disk)
    for key in ("ab" * 32, "ac" * 32):
        ledger.lease(key, "attempt", about={"task": {"kind": "toy"}, "inputs": {}})
    with pytest.raises(BadRequest, match=r"2 steps start with 'a': abababababab \(toy\), acacacacacac \(toy\)"):
        explain_step(disk, "a")
    assert explain_step(disk, "AB")["task"] == {"kind": "toy"}


def test_the_step_at_the_same_place_is_compared_even_if_one_elsewhere_differs_in_less(disk: Store) -> None:
    ledger = Ledger(disk)
    steps = {"aa": ({"a": 0, "b": 0}, 1), "bb": ({"a": 1, "b": 0}, 2), "cc": ({"a": 1, "b": 1}, 1)}
    for short, (fields, level) in steps.items():
        task = {"kind": "toy", **fields}
        run = Run.open(disk, f"run-{short}", {"name": short})
        write_plan(disk, run.id, [{"key": short * 32, "at": {"level": level}, "task": task, "inputs": {}}])
        if short != "cc":
            lease = ledger.lease(short * 32, f"attempt-{short}")
            assert lease is not None
            ledger.publish(lease, {}, {"task": task, "inputs": {}, "metrics": {}})
    assert explain_step(disk, "cc")["nearest"]["key"] == "aa" * 32
