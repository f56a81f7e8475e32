"""What the events and leases say about running work, and how little of them is read."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import pytest

from cluster import overview, runs
from cluster.overview import PAST, Overview
from cluster.owner import Owner
from cluster.runs import write_plan
from cluster.standing import LINGER, SILENCE, RunNow
from cluster.store import Store, StoreError
from tests.cluster.scenes import ELSEWHERE, GONE, Scene, age

HOUR = 3600.0


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are written when a test says so."""
    monkeypatch.setattr(runs, "FLUSH_SECONDS", 1e6)


@pytest.fixture
def scene(disk: Store) -> Scene:
    return Scene(disk)


def look(store: Store, run_id: str = "") -> RunNow:
    (seen,) = Overview(store, run_id).look()
    return seen


def test_running_steps_are_shown_with_node_attempt_and_progress(scene: Scene) -> None:
    scene.hold("b" * 64, node="bb22", progress=(3, 10, "epoch 3"))
    scene.ledger.beat(scene.hold("a" * 64), state="released")
    scene.hold("a" * 64)  # the second attempt
    scene.tell("started", "c" * 64)  # waits in Ray's queue
    scene.ledger.beat(scene.hold("d" * 64), state="released")  # was given back, and its next attempt waits
    scene.flush()
    now = look(scene.store)
    first, second = now.running
    assert (first.key[0], first.node, first.attempt) == ("a", "aa11", 2)
    assert (second.key[0], second.node, second.progress) == ("b", "bb22", (3, 10, "epoch 3"))
    assert 5 <= (first.seconds or 0) < 8
    assert [(node.node, node.running) for node in now.nodes] == [("aa11", 1), ("bb22", 1)]
    assert (now.queued, now.done, now.driver_state) == (2, 0, "at work")
    assert now.driver is not None
    assert now.driver.cpus == 4
    assert first.host == Owner.me().machine


def test_a_step_on_several_nodes_runs_on_each_of_them(scene: Scene) -> None:
    scene.tell("started", "a" * 64)
    assert scene.ledger.lease("a" * 64, "d1-1", about={"node": "aa11", "beside": ["bb22"]})
    scene.flush()
    now = look(scene.store)
    assert {node.node: node.running for node in now.nodes} == {"aa11": 1, "bb22": 1}
    assert len(now.running) == 1


def test_why_steps_cannot_be_placed_is_told_until_they_run(scene: Scene) -> None:
    for key in "ab":
        scene.tell("started", key * 64)
        scene.tell("unplaced", key * 64, message="no node has 2 GPUs")
    scene.flush()
    assert look(scene.store).unplaced == {"no node has 2 GPUs": 2}
    assert scene.ledger.lease("a" * 64, "d1-1", about={"node": "aa11"})
    now = look(scene.store)
    assert (now.unplaced, now.queued, len(now.running)) == ({"no node has 2 GPUs": 1}, 1, 1)


def test_what_was_read_is_not_read_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(300):
        scene.tell("started", f"{number:064d}")
        scene.tell("published", f"{number:064d}", seconds=1.0)
        scene.flush()
    scene.hold("f" * 64)
    scene.flush()
    overview_ = Overview(scene.store)
    assert overview_.look()[0].done == 300
    calls: Counter[str] = Counter()
    for name in ("get", "look", "entries"):
        true = getattr(Store, name)

        def counted(self: Store, *about: Any, name: str = name, true: Any = true) -> Any:
            calls[f"{name} {about[0].split('/')[0]}"] += 1
            if name != "entries":
                return true(self, *about)
            listed = list(true(self, *about))
            calls["listed"] += len(listed)
            return iter(listed)

        monkeypatch.setattr(Store, name, counted)
    assert overview_.look()[0].done == 300
    assert calls == {"entries runs": 2, "listed": 0, "look runs": 1, "get steps": 2, "look steps": 1}
    scene.tell("published", "f" * 64, seconds=1.0)
    scene.flush()
    calls.clear()
    assert overview_.look()[0].done == 301
    assert calls == {"entries runs": 2, "listed": 1, "look runs": 1, "get runs": 1}


def test_of_two_drivers_at_once_the_earlier_and_one_whose_clock_is_late_are_heard_too(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = Scene(scene.store, driver="d2")
    later.tell("published", "b" * 64, seconds=1.0)
    later.flush()
    scene.tell("published", "a" * 64, seconds=1.0)
    scene.flush()
    watching = Overview(scene.store)
    assert watching.look()[0].done == 2
    for key in "cd":
        scene.tell("published", key * 64, seconds=1.0)
        scene.flush()
    assert watching.look()[0].done == 4
    true = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: true() - int(HOUR * 1e9))
    late = Scene(scene.store, driver="d3")
    late.tell("published", "e" * 64, seconds=1.0)
    late.flush()
    late.beat()
    assert watching.look()[0].done == 5
    late.tell("published", "f" * 64, seconds=1.0)
    late.flush()
    assert watching.look()[0].done == 6


def test_runs_that_are_not_at_work_are_searched_now_and_then_and_old_ones_never_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, old in ((2, PAST + 60), (3, 60)):
        Scene(scene.store, f"run-{number}", f"d{number}").end()
        age(scene.store, f"runs/run-{number}", old)
    scene.flush()
    touched: list[str] = []
    for name in ("get", "look", "entries"):
        true = getattr(Store, name)

        def noted(self: Store, *about: Any, true: Any = true) -> Any:
            touched.append(about[0])
            return true(self, *about)

        monkeypatch.setattr(Store, name, noted)
    watching = Overview(scene.store)
    assert [run.id for run in watching.look()] == ["run-1"]
    assert not any("run-2/events" in path for path in touched)
    touched.clear()
    watching.look()
    assert not any("run-2" in path or "run-3" in path for path in touched)
    touched.clear()
    watching._search_due = 0.0
    watching.look()
    assert "runs/run-2/plan.json" not in touched
    assert "runs/run-3/plan.json" in touched
    assert [run.driver_state for run in Overview(scene.store, "run-2").look()] == ["ended"]


def test_only_runs_at_work_are_shown_unless_one_is_named(scene: Scene) -> None:
    done = Scene(scene.store, "run-2", "d2")
    done.end()
    killed = Scene(scene.store, "run-3", "d3")
    killed.flush()
    age(scene.store, "runs/run-3", LINGER + 60)
    scene.flush()
    assert [run.id for run in Overview(scene.store).look()] == ["run-1"]
    assert look(scene.store, "run-2").driver_state == "ended"


def test_a_run_that_was_seen_at_work_is_shown_to_its_end(scene: Scene) -> None:
    scene.flush()
    watching = Overview(scene.store)
    assert [run.driver_state for run in watching.look()] == ["at work"]
    scene.end()
    assert [run.driver_state for run in watching.look()] == ["ended"]


def test_a_run_that_is_resumed_is_seen_at_the_next_search(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "IDLE_SECONDS", 0.0)
    Scene(disk).end()
    watching = Overview(disk)
    assert watching.look() == []
    Scene(disk, driver="d2").flush()
    (run,) = watching.look()
    assert run.driver is not None
    assert (run.driver.id, run.driver_state) == ("d2", "at work")


def test_a_driver_without_news_is_called_silent_and_a_dead_one_gone(disk: Store) -> None:
    Scene(disk, owner=ELSEWHERE).flush()
    assert look(disk).driver_state == "at work"
    age(disk, "runs/run-1", SILENCE + 5)
    silent = look(disk)
    assert silent.driver_state == "silent"
    assert silent.driver_silent == pytest.approx(SILENCE + 5, abs=2)
    Scene(disk, "run-2", "d2", GONE).flush()
    assert look(disk, "run-2").driver_state == "gone"


def test_a_driver_shows_that_it_lives_while_nothing_happens(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(runs, "FLUSH_SECONDS", 0.1)
    scene = Scene(disk, owner=ELSEWHERE)
    scene.flush()
    age(disk, "runs/run-1", SILENCE + 5)
    until = time.monotonic() + 5
    while look(disk).driver_state != "at work":
        assert time.monotonic() < until
        time.sleep(0.05)
    scene.log.close()


def test_failures_are_counted_by_class_and_mended_ones_do_not_stand(scene: Scene) -> None:
    scene.tell("retried", "a" * 64, cause="oom", message="first")
    scene.tell("retried", "a" * 64, cause="oom", message="second")
    scene.tell("failed", "a" * 64, cause="oom", message="third")
    scene.tell("retried", "b" * 64, cause="node", message="node died")
    scene.tell("failed", "c" * 64, cause="user", message="bad")
    scene.end()
    watching = Overview(scene.store, "run-1")
    (now,) = watching.look()
    assert now.failed == 2
    assert {cause: (seen.retried, seen.failed, seen.message) for cause, seen in now.troubles.items()} == {
        "node": (1, 0, "node died"),
        "oom": (2, 1, "third"),
        "user": (0, 1, "bad"),
    }
    again = Scene(scene.store, driver="d2")
    again.tell("published", "c" * 64, seconds=1.0)
    again.flush()
    (now,) = watching.look()
    assert (now.failed, now.troubles["user"].failed, now.done) == (1, 0, 1)


def test_throughput_is_by_the_stores_clock_whatever_the_drivers_says(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = time.time
    with monkeypatch.context() as late:
        late.setattr(runs.time, "time", lambda: true() - HOUR)
        for number in range(10):
            scene.tell("published", f"{number:064d}", seconds=2.0, sample_steps=100)
        scene.flush()
    age(scene.store, "runs/run-1/events", 60)
    now = look(scene.store)
    assert now.per_minute == pytest.approx(10, rel=0.2)
    assert now.sample_steps == pytest.approx(1000 / 60, rel=0.2)
    assert now.typical == {"train": 2.0}
    age(scene.store, "runs/run-1/events", 2 * overview.WINDOW)
    assert look(scene.store).per_minute == 0


def test_throughput_of_a_resumed_run_does_not_count_the_time_when_nobody_drove_it(scene: Scene) -> None:
    scene.end()
    again = Scene(scene.store, driver="d2")
    again.flush()
    age(scene.store, "runs/run-1/events", 250, of="-d1-")
    age(scene.store, "runs/run-1/events", 60, of="-d2-")
    for number in range(6):
        again.tell("published", f"{number:064d}", seconds=2.0)
    again.flush()
    assert look(scene.store).per_minute == pytest.approx(6, rel=0.2)


def test_what_a_store_refused_to_give_is_read_at_the_next_look(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    watching = Overview(scene.store)
    for number in range(4):
        scene.tell("published", f"{number:064d}", seconds=1.0)
        scene.flush()
    true, tries = Store.get, iter(range(100))

    def get(self: Store, path: str) -> bytes | None:
        if "/events/" in path and next(tries) == 3:
            raise StoreError("away")
        return true(self, path)

    monkeypatch.setattr(Store, "get", get)
    with pytest.raises(StoreError):
        watching.look()
    assert watching.look()[0].done == 4


def test_a_step_whose_worker_is_dead_is_not_running_though_its_driver_lives(scene: Scene) -> None:
    scene.owner = GONE
    scene.hold("a" * 64)
    scene.flush()
    now = look(scene.store)
    assert (now.driver_state, now.running, now.queued) == ("at work", [], 1)


def test_a_steps_own_silence_is_told(scene: Scene) -> None:
    scene.hold("a" * 64, progress=(1, 2, ""))
    scene.flush()
    age(scene.store, "steps", 40)
    now = look(scene.store)
    assert now.running[0].silent == pytest.approx(40, abs=2)
    assert now.nodes[0].silent == pytest.approx(40, abs=2)


def test_that_the_store_did_not_answer_says_nothing_of_where_a_step_stands(scene: Scene) -> None:
    for state, key in (("started", "a"), ("waiting", "b"), ("published", "c")):
        scene.tell(state, key * 64)
        scene.tell("held-up", key * 64, message="no answer")
    scene.tell("held-up", "d" * 64, message="no answer")
    scene.flush()
    now = look(scene.store)
    assert [now.steps[key * 64].state for key in "abcd"] == ["started", "waiting", "published", "planned"]
    assert (now.queued, now.done) == (1, 1)


def test_steps_of_the_plan_are_known_before_they_start(scene: Scene) -> None:
    step = {"key": "a" * 64, "at": {"level": 0}, "task": {"kind": "prune", "threads": 2}, "inputs": {"x": "b" * 64}}
    write_plan(scene.store, "run-1", [step])
    scene.flush()
    watching = Overview(scene.store)
    (now,) = watching.look()
    planned = now.steps["a" * 64]
    assert (planned.kind, planned.threads, planned.inputs, planned.state) == ("prune", 2, ("b" * 64,), "planned")


def test_a_record_is_json_and_holds_what_is_shown(scene: Scene) -> None:
    scene.hold("a" * 64, progress=(1, 2, "x"))
    scene.tell("retried", "b" * 64, cause="node", message="died")
    scene.flush()
    record = json.loads(json.dumps(look(scene.store).record()))
    assert record["steps_running"] == 1
    assert record["running"][0]["progress"] == [1, 2, "x"]
    assert record["failures"]["node"]["retried"] == 1
