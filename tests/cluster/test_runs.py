"""The event log loses nothing and keeps its order."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cluster.runs
from cluster.runs import EventLog, Run, all_runs, beats_of, events_of, finished_steps, named_steps, write_plan
from cluster.store import Store, StoreError
from tests.cluster.driving import Driver, ThreadExecutor
from tests.cluster.toys import Add

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _flush_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.runs, "FLUSH_SECONDS", 0.05)


def numbers(store: Store) -> list[int]:
    return [event["number"] for event in events_of(store, "run")]


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_keeps_its_first_record_however_often_it_is_started(store: Store) -> None:
    first = Run.open(store, "imp-1", {"name": "imp", "recipe": {"levels": 3}})
    second = Run.open(store, "imp-1", {"name": "other"})
    assert second == first == Run.load(store, "imp-1")
    assert first.record["recipe"] == {"levels": 3}


def test_the_beginning_of_an_id_is_enough_unless_several_start_like_it(store: Store) -> None:
    for name in ("imp-12", "imp-13", "imp-1", "colt-7"):
        Run.open(store, name, {})
    assert Run.load(store, "c").id == "colt-7"
    assert Run.load(store, "imp-1").id == "imp-1"
    with pytest.raises(ValueError, match=r"several runs start with 'imp'; runs here: imp-1, imp-12, imp-13"):
        Run.load(store, "imp")
    with pytest.raises(ValueError, match=r"no run starts with 'x'; runs here: colt-7, imp-1"):
        Run.load(store, "x")


def test_a_store_without_runs_says_so(store: Store) -> None:
    assert all_runs(store) == []
    with pytest.raises(ValueError, match="none yet"):
        Run.load(store, "x")


def test_runs_are_listed_oldest_first(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for now, name in enumerate(("b", "c", "a")):
        with monkeypatch.context() as clock:
            clock.setattr(time, "time", lambda now=now: 1000.0 + now)
            Run.open(disk, name, {})
    assert [run.id for run in all_runs(disk)] == ["b", "c", "a"]


def test_closing_writes_every_event_in_order(store: Store) -> None:
    log = EventLog(store, "run", "driver")
    for number in range(200):
        log.write("step", number=number)
        if number % 50 == 0:
            time.sleep(0.06)
    log.close()
    assert numbers(store) == list(range(200))
    assert len(set(store.paths("runs/run/events"))) > 1


def test_a_later_driver_s_events_come_after_those_of_an_earlier_one(store: Store) -> None:
    for turn, driver in enumerate(("zz", "aa", "mm")):
        log = EventLog(store, "run", driver)
        log.write("step", number=turn)
        log.close()
    assert numbers(store) == [0, 1, 2]


def test_a_store_that_is_away_for_a_while_loses_and_doubles_no_event(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, tries = disk.put, []

    def faulty(path: str, data: bytes) -> None:
        tries.append(path)
        if len(tries) == 2:
            put(path, data)  # written, but the answer is lost
        if len(tries) <= 4:
            raise StoreError(f"{path}: away")
        put(path, data)

    monkeypatch.setattr(disk, "put", faulty)
    log = EventLog(disk, "run", "driver")
    for number in range(20):
        log.write("step", number=number)
        time.sleep(0.02)
    log.close()
    assert len(tries) > 4
    assert numbers(disk) == list(range(20))


def test_closing_on_a_store_that_stays_away_says_so(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, data: bytes) -> None:
        raise StoreError(f"{path}: away")

    monkeypatch.setattr(disk, "put", refuse)
    log = EventLog(disk, "run", "driver")
    log.write("step", number=1)
    with pytest.raises(StoreError, match="away"):
        log.close()


def test_a_slow_store_does_not_hold_up_the_writer(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put = disk.put

    def slow(path: str, data: bytes) -> None:
        time.sleep(0.3)
        put(path, data)

    monkeypatch.setattr(disk, "put", slow)
    log = EventLog(disk, "run", "driver")
    log.write("step", number=0)
    time.sleep(0.1)  # now it is being written
    began = time.monotonic()
    for number in range(1, 1000):
        log.write("step", number=number)
    assert time.monotonic() - began < 0.2
    log.close()
    assert numbers(disk) == list(range(1000))


def test_a_driver_beats_on_every_kind_of_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.runs, "BEAT_SECONDS", 0.05)
    log = EventLog(store, "run", "driver")
    until(lambda: bool(beats_of(store, "run")))
    first = beats_of(store, "run")["driver"]
    until(lambda: beats_of(store, "run")["driver"] > first)
    log.close()
    assert beats_of(store, "run").keys() == {"driver"}


def test_what_a_killed_driver_wrote_stays_readable(disk: Store) -> None:
    code = f"""
import time
import cluster.runs
from cluster.store import Store
cluster.runs.FLUSH_SECONDS = 0.05
log = cluster.runs.EventLog(Store.open({disk.url!r}), "run", "driver")
for number in range(100000):
    log.write("step", number=number)
    time.sleep(0.001)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        until(lambda: len(list(disk.paths("runs/run/events"))) >= 3)
    finally:
        process.kill()
        process.wait()
    seen = numbers(disk)
    assert seen == list(range(len(seen)))
    assert len(seen) > 10


def test_named_steps_are_those_of_the_plan_and_those_met_on_the_way(disk: Store) -> None:
    write_plan(disk, "run", [{"key": "k1", "at": {"level": 1}, "task": {"kind": "add"}, "inputs": {}}])
    log = EventLog(disk, "run", "driver")
    log.write("run", state="started")
    log.write("step", key="k1", at={"level": 9})
    log.write("step", key="k2", at={"level": 2})
    log.close()
    named = named_steps(disk, "run")
    assert list(named) == ["k1", "k2"]
    assert named["k1"]["task"] == {"kind": "add"}
    assert [step["at"]["level"] for step in named.values()] == [1, 2]


def test_finished_steps_are_those_published_in_the_order_of_their_naming(disk: Store) -> None:
    driver = Driver(disk, ThreadExecutor())

    async def run(flow: Any) -> None:
        for number in (3, 1):
            await flow.at(number=number).step(Add(number))

    driver.run(run)
    keys = [handle.key for state, handle, _ in driver.events if state == "published"]
    write_plan(disk, "run", [{"key": key, "at": {"turn": turn}} for turn, key in enumerate([*keys, "ab" * 32])])
    found = finished_steps(disk, "run")
    assert [(step.at["turn"], step.kind, step.metrics["sum"]) for step in found] == [(0, "add", 3), (1, "add", 1)]
