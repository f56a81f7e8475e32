"""The engine on threads: every decision between driver and ledger, without Ray's start-up time."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cluster.engine
from cluster.engine import Stopped
from cluster.failures import BUDGET, StepFailed
from cluster.flow import Flow
from cluster.ledger import Ledger, folder_of
from cluster.order import Outcome
from cluster.store import Store, StoreError
from tests.cluster.driving import SHORT, Driver, Outage, ThreadExecutor, fan, fan_sum
from tests.cluster.toys import Add, Count, Fail, Wait

QUICK = replace(SHORT, ttl=0.6)


def driver(store: Store, **options: Any) -> Driver:
    return Driver(store, ThreadExecutor(), **{"terms": QUICK, **options})


def lines(trace: Path) -> list[str]:
    return trace.read_text().splitlines() if trace.exists() else []


def test_results_follow_the_graph(disk: Store, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    made = driver(disk)
    assert made.run(lambda flow: fan(flow, str(trace), 4, 0.0)) == fan_sum(4)
    assert len(lines(trace)) == 9


def test_no_step_starts_before_those_that_feed_it(disk: Store, tmp_path: Path) -> None:
    made = driver(disk)
    made.run(lambda flow: fan(flow, str(tmp_path / "trace"), 3, 0.01))
    done: set[str] = set()
    for state, handle, _ in made.events:
        if state == "started":
            assert {upstream.key for upstream in handle.inputs.values()} <= done
        if state == "published":
            done.add(handle.key)
    assert len(done) == 8


def test_equal_steps_are_one_step_wherever_they_are_asked_for(disk: Store, tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    async def run(flow: Flow) -> Any:
        first = flow.at(level=1).step(Add(1, str(trace)))
        assert flow.at(level=2).step(Add(1, str(trace))) is first
        above = flow.step(Add(2, str(trace)), x=first)
        assert flow.step(Add(2, str(trace)), x=first, y=None) is above
        assert flow.step(Add(2, str(trace)), z=first) is not above
        return (await above)["sum"]

    assert driver(disk).run(run) == 3
    assert sorted(set(lines(trace))) == ["add 1", "add 2"]
    assert lines(trace).count("add 1") == 1


def test_a_second_run_finds_everything_and_starts_nothing(disk: Store, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    first, second = driver(disk), driver(disk)

    async def run(flow: Flow) -> list[int]:
        steps = [flow.step(Add(number, str(trace))) for number in range(5)]
        return [(await step)["sum"] for step in steps]

    assert first.run(run) == second.run(run) == [0, 1, 2, 3, 4]
    assert (first.count("started"), first.count("found")) == (5, 0)
    assert (second.count("started"), second.count("found")) == (0, 5)
    assert len(lines(trace)) == 5


def test_a_user_error_is_told_once_with_its_log_and_the_others_go_on(disk: Store, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    made = driver(disk)

    async def run(flow: Flow) -> list[Any]:
        bad = flow.at(replicate=1).step(Fail("no good", trace=str(trace)))
        doomed = [flow.step(Add(number), x=bad) for number in range(3)]
        fine = [flow.step(Add(number)) for number in range(3)]
        return await asyncio.gather(*(branch.published() for branch in [*doomed, *fine]), return_exceptions=True)

    results = made.run(run)
    failures = results[:3]
    assert all(isinstance(failure, StepFailed) for failure in failures)
    assert {(failure.cause, failure.message) for failure in failures} == {("user", "no good")}
    assert "fail replicate 1 [" in str(failures[0])
    assert [result.metrics["sum"] for result in results[3:]] == [0, 1, 2]
    assert (made.count("failed"), made.count("retried")) == (1, 0)
    assert lines(trace) == ["fail"]
    assert b"ValueError: no good" in (disk.get(made.news("failed")[0]["log"]) or b"")


@pytest.mark.parametrize(("error", "cause"), [("MemoryError", "oom"), ("StoreError", "store")])
def test_a_passing_failure_is_tried_again_until_its_budget_is_spent(
    disk: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, cause: Any
) -> None:
    monkeypatch.setitem(BUDGET, cause, 2)
    trace = tmp_path / "trace"
    made = driver(disk)
    with pytest.raises(StepFailed) as failure:
        made.run(lambda flow: flow.step(Fail("hm", error, str(trace))).published())
    assert failure.value.cause == cause
    assert (len(lines(trace)), made.count("retried"), made.count("failed")) == (3, 2, 1)


class Unsteady(ThreadExecutor):
    """An executor whose first attempts end otherwise than their workers say."""

    def __init__(self, *outcomes: Outcome) -> None:
        super().__init__()
        self.outcomes = list(outcomes)

    async def outcome(self, running: Any) -> Outcome:
        real: Outcome = await running
        return self.outcomes.pop(0) if self.outcomes else real


def test_a_step_that_published_before_its_worker_died_is_not_computed_again(disk: Store, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    made = Driver(disk, Unsteady(Outcome("failed", "node", "the worker died")), QUICK)
    assert made.run(lambda flow: flow.step(Add(1, str(trace))).published()).metrics["sum"] == 1
    assert lines(trace) == ["add 1"]
    assert made.count("retried") == 1


# ---- several holders


def test_two_drivers_at_once_compute_each_step_once(disk: Store, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    drivers = [driver(disk), driver(disk)]

    async def both() -> list[int]:
        return list(
            await asyncio.gather(*(made.drive(lambda flow: fan(flow, str(trace), 6, 0.02)) for made in drivers))
        )

    assert asyncio.run(asyncio.wait_for(both(), 60)) == [fan_sum(6)] * 2
    assert len(lines(trace)) == len(set(lines(trace))) == 13
    assert len(lines(tmp_path / "trace.count")) == 20


def test_a_silent_holder_is_waited_for_and_then_passed_over(disk: Store) -> None:
    made = driver(disk)

    async def run(flow: Flow) -> float:
        step = flow.step(Add(5))
        assert Ledger(disk).lease(step.key, "silent") is not None  # of a process that lives, but never beats
        began = time.monotonic()
        await step
        return time.monotonic() - began

    assert QUICK.ttl < made.run(run) < QUICK.ttl + 3
    assert made.count("waiting") == 1


def test_a_holder_that_beats_is_waited_for_however_long_it_takes(disk: Store, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    slow, eager = driver(disk), driver(disk)
    flag, started = tmp_path / "flag", tmp_path / "started"

    async def both() -> None:
        step = Wait(str(flag), str(started))
        first = asyncio.ensure_future(slow.drive(lambda flow: flow.step(step).published()))
        while not started.exists():
            await asyncio.sleep(0.01)
        second = asyncio.ensure_future(eager.drive(lambda flow: flow.step(step).published()))
        await asyncio.sleep(3 * QUICK.ttl)
        assert not second.done()
        flag.touch()
        assert await first == await second

    asyncio.run(asyncio.wait_for(both(), 30))
    assert len(lines(started)) == 1
    assert eager.count("waiting") == 1
    assert not trace.exists()


@pytest.mark.parametrize("hangs", [False, True])
def test_a_holder_whose_store_was_away_is_not_passed_over(
    disk: Store, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    ttl = 0.4
    made, outage = driver(disk, terms=replace(QUICK, ttl=ttl)), Outage(disk, hangs)
    ledger = Ledger(Store.open(disk.url))
    monkeypatch.setattr(disk, "get", outage.get)

    async def run(flow: Flow) -> Any:
        step = flow.step(Add(5))
        lease = ledger.lease(step.key, "holder")
        assert lease is not None
        waiting = asyncio.ensure_future(step.published())
        await asyncio.sleep(ttl / 2)
        ledger.beat(lease)
        await asyncio.sleep(ttl / 3)
        outage.begin(1.5 * ttl)
        await asyncio.sleep(1.6 * ttl)  # no beat arrives either, and the next one takes a moment
        ledger.beat(lease)
        ledger.publish(lease, {"sum.txt": b"5"}, {"task": step.task.identity(), "inputs": {}, "metrics": {"sum": 5}})
        return (await waiting).manifest["attempt"]

    assert made.run(run) == "holder"
    assert made.count("started") == 1


# ---- stopping


def test_stopped_steps_save_and_the_next_driver_goes_on_from_there(disk: Store, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    task = Count(60, 0.02, str(trace))
    made = driver(disk)

    async def run(flow: Flow) -> Any:
        top = flow.step(Add(1), x=flow.step(task))
        while len(lines(trace)) < 5:
            await asyncio.sleep(0.01)
        await made.engine.stop()
        return await asyncio.gather(top.published(), return_exceptions=True)

    assert isinstance(made.run(run)[0], Stopped)
    assert not list(disk.paths("drivers"))
    stopped_at = len(lines(trace))
    assert stopped_at < 60
    following = driver(disk)
    assert following.run(lambda flow: flow.step(Add(1), x=flow.step(task)).published()).metrics["sum"] == 61
    assert [int(line.split()[1]) for line in lines(trace)] == list(range(60))


def test_nothing_starts_once_the_driver_stops(disk: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.engine, "IN_FLIGHT", 1)
    trace = tmp_path / "trace"
    made = driver(disk)

    async def run(flow: Flow) -> Any:
        steps = [flow.step(Count(50 + number, 0.02, str(trace))) for number in range(4)]
        while len(lines(trace)) < 3:
            await asyncio.sleep(0.01)
        await made.engine.stop()
        return await asyncio.gather(*(step.published() for step in steps), return_exceptions=True)

    assert all(isinstance(result, Stopped) for result in made.run(run))
    assert made.count("started") == 1


def test_a_step_that_does_not_leave_is_ended_after_the_farewell(disk: Store, tmp_path: Path) -> None:
    started = tmp_path / "started"
    made = driver(disk, terms=replace(QUICK, farewell=0.3))

    async def run(flow: Flow) -> Any:
        step = flow.step(Wait(str(tmp_path / "never"), str(started)))
        while not started.exists():
            await asyncio.sleep(0.01)
        began = time.monotonic()
        await made.engine.stop()
        result = await asyncio.gather(step.published(), return_exceptions=True)
        (tmp_path / "never").touch()
        return result[0], time.monotonic() - began

    result, seconds = made.run(run)
    assert isinstance(result, Stopped)
    assert 0.3 <= seconds < 2


# ---- a store in trouble


def test_a_store_that_fails_the_driver_is_told_as_such(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> bytes:
        raise StoreError(f"{path}: away")

    monkeypatch.setattr(disk, "get", refuse)
    monkeypatch.setattr("cluster.engine.STORE_PATIENCE", 0.3)
    made = driver(disk)
    began = time.monotonic()
    with pytest.raises(StoreError, match="away"):
        made.run(lambda flow: flow.step(Add(1)).published())
    assert 0.3 <= time.monotonic() - began < 3
    assert [news["message"] for news in made.news("held-up")] == [
        f"{folder_of(made.events[0][1].key)}/manifest.json: away"
    ]


# ---- together


def test_together_lets_the_others_finish_before_it_raises(disk: Store, tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    async def run(flow: Flow) -> None:
        await flow.together(flow.step(Fail("no good")), flow.step(Add(1, str(trace), 0.3)))

    with pytest.raises(StepFailed, match="no good"):
        driver(disk).run(run)
    assert lines(trace) == ["add 1"]


def test_a_driver_stops_also_when_the_store_takes_no_sign_of_it(
    disk: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "started"
    made = driver(disk, terms=replace(QUICK, farewell=0.2))

    def refuse(*arguments: Any) -> None:
        raise StoreError("no room")

    async def run(flow: Flow) -> Any:
        step = flow.step(Wait(str(tmp_path / "never"), str(started)))
        while not started.exists():
            await asyncio.sleep(0.01)
        with monkeypatch.context() as full:
            full.setattr(disk, "put", refuse)
            full.setattr(disk, "delete", refuse)
            await made.engine.stop()
        (tmp_path / "never").touch()
        return await asyncio.gather(step.published(), return_exceptions=True)

    assert isinstance(made.run(run)[0], Stopped)
