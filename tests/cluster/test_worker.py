"""One attempt at a step, without Ray."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.failures import BUDGET, Budget, StepFailed, cause_of
from cluster.ledger import Ledger, folder_of
from cluster.order import EVERYBODY, Order, Outcome, ask_to_leave
from cluster.step import key_of
from cluster.store import Store, StoreError
from cluster.worker import run_step
from tests.cluster.driving import SHORT
from tests.cluster.toys import Add, Count, Fail, Unwritable, Wait


def order(store: Store, task: Any, attempt: str = "d-1", **changes: Any) -> Order:
    key = key_of(task.identity(), {})
    made = Order(key, task, {}, store.url, "driver", attempt, 0, replace(SHORT, beat=0.02))
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ValueError("x"), "user"),
        (SystemExit(1), "user"),
        (MemoryError(), "oom"),
        (StoreError("x"), "store"),
        (OSError(28, "No space left on device"), "store"),
        (OSError(2, "No such file"), "user"),
        (KeyboardInterrupt(), "preempted"),
    ],
)
def test_each_error_has_its_class(error: BaseException, cause: str) -> None:
    assert cause_of(error) == cause


def test_a_budget_is_spent_per_cause_and_won_back_by_progress() -> None:
    budget = Budget()
    assert not budget.spend("user", made_progress=True)
    for _ in range(BUDGET["node"]):
        assert budget.spend("node", made_progress=False)
    assert budget.spend("partition", made_progress=False)
    assert not budget.spend("node", made_progress=False)
    assert budget.spend("node", made_progress=True)


def test_a_failure_survives_pickling() -> None:
    import pickle

    failure = pickle.loads(pickle.dumps(StepFailed("key", "train", "oom", "too big", "a/log.txt")))
    assert (failure.key, failure.what, failure.cause, failure.message, failure.log) == (
        "key", "train", "oom", "too big", "a/log.txt",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("task", "cause", "message"),
    [
        (Fail("no good"), "user", "no good"),
        (Fail("no good", "RuntimeError"), "user", "RuntimeError: no good"),
        (Fail("", "AssertionError"), "user", "AssertionError: AssertionError"),
        (Fail("big", "MemoryError"), "oom", "MemoryError: big"),
        (Fail("away", "StoreError"), "store", "away"),
        (Unwritable(), "user", "TypeError: Object of type object is not JSON serializable"),
    ],
)
def test_a_failure_is_told_in_one_line_and_leaves_its_traceback(
    disk: Store, task: Any, cause: str, message: str
) -> None:
    outcome = run_step(order(disk, task))
    assert (outcome.state, outcome.cause, outcome.message) == ("failed", cause, message)
    log = (disk.get(outcome.log) or b"").decode()
    assert log.startswith("Traceback")
    assert message.split(": ")[-1] in log


def test_a_failed_attempt_gives_its_lease_back(disk: Store) -> None:
    asked = order(disk, Fail("no good"))
    run_step(asked)
    assert Ledger(disk).lease(asked.key, "next") is not None


def test_a_published_step_is_not_computed_again(disk: Store, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    asked = order(disk, Add(3, str(trace)))
    assert run_step(asked) == Outcome("published")
    assert run_step(replace(asked, attempt="d-2")) == Outcome("published")
    assert trace.read_text() == "add 3\n"
    assert [path for path in disk.paths("steps") if "lease-" in path] == [f"{folder_of(asked.key)}/lease-0001.json"]


def test_a_step_whose_lease_another_holds_is_busy(disk: Store) -> None:
    asked = order(disk, Add(3))
    assert Ledger(disk).lease(asked.key, "theirs") is not None
    assert run_step(asked) == Outcome("busy")


def test_a_zombie_that_wakes_after_its_successor_is_fenced(disk: Store, tmp_path: Path) -> None:
    flag, started = tmp_path / "flag", tmp_path / "started"
    asked = order(disk, Wait(str(flag), str(started)))
    outcomes: list[Outcome] = []
    zombie = threading.Thread(target=lambda: outcomes.append(run_step(asked)))
    zombie.start()
    until(started.exists)
    ledger = Ledger(disk)
    successor = ledger.lease(asked.key, "successor", over=1)
    assert successor is not None
    ledger.publish(successor, {"sum.txt": b"right"}, {"metrics": {}})
    flag.touch()
    zombie.join(10)
    assert [outcome.state for outcome in outcomes] == ["fenced"]
    found = ledger.find(asked.key)
    assert found is not None
    assert (found.manifest["attempt"], found.read("sum.txt")) == ("successor", b"right")


def test_a_fenced_worker_stops_at_its_next_checkpoint(disk: Store, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    asked = order(disk, Count(1000, 0.02, str(trace)))
    outcomes: list[Outcome] = []
    zombie = threading.Thread(target=lambda: outcomes.append(run_step(asked)))
    zombie.start()
    until(trace.exists)
    assert Ledger(disk).lease(asked.key, "successor", over=1) is not None
    zombie.join(10)
    assert [outcome.state for outcome in outcomes] == ["fenced"]


def test_a_worker_asked_to_stop_saves_and_leaves_and_its_successor_goes_on(disk: Store, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    asked = order(disk, Count(60, 0.02, str(trace)))
    outcomes: list[Outcome] = []
    worker = threading.Thread(target=lambda: outcomes.append(run_step(asked)))
    worker.start()
    until(lambda: trace.exists() and len(trace.read_text().splitlines()) > 5)
    ask_to_leave(disk, "driver", [EVERYBODY])
    worker.join(10)
    assert [outcome.state for outcome in outcomes] == ["stopped"]
    assert run_step(replace(asked, attempt="e-1", driver="next")) == Outcome("published")
    assert [int(line.split()[1]) for line in trace.read_text().splitlines()] == list(range(60))


def test_a_step_that_was_queued_while_its_driver_stopped_does_not_start(disk: Store, tmp_path: Path) -> None:
    ask_to_leave(disk, "driver", [EVERYBODY])
    trace = tmp_path / "trace"
    assert run_step(order(disk, Add(3, str(trace)))).state == "stopped"
    assert not trace.exists()
    assert list(disk.paths("steps")) == []


def test_checkpoints_are_gone_once_the_step_is_published(disk: Store) -> None:
    asked = order(disk, Count(8, 0.05))
    assert run_step(asked) == Outcome("published")
    assert not [path for path in disk.paths("steps") if path.endswith("checkpoint")]


def test_the_manifest_says_what_was_computed_from_what_and_where(disk: Store) -> None:
    first, second = Add(1), Add(2)
    below = order(disk, first)
    run_step(below)
    key = key_of(second.identity(), {"x": below.key})
    run_step(order(disk, second, key=key, inputs={"x": below.key}))
    found = Ledger(disk).find(key)
    assert found is not None
    assert found.manifest["task"] == second.identity()
    assert found.manifest["inputs"] == {"x": below.key}
    assert found.metrics == {"sum": 3}
    assert found.manifest["environment"]["threads"] == 1


def test_a_missing_input_is_damage_that_names_it(disk: Store) -> None:
    outcome = run_step(order(disk, Add(1), inputs={"x": "ef" * 32}))
    assert outcome.state == "damaged"
    assert outcome.damaged is not None
    assert outcome.damaged.key == "ef" * 32


def test_the_thread_count_of_torch_is_set_for_each_step(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    cuda = SimpleNamespace(is_available=lambda: False)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(set_num_threads=counts.append, cuda=cuda))
    run_step(order(disk, Add(1, threads=3)))
    run_step(order(disk, Add(2, threads=1)))
    assert counts == [3, 1]


def until(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
