"""Whole drivers, each a process with a Ray session of its own, that share a store, are killed and start again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.ledger import Ledger
from cluster.store import Store
from tests.cluster.driving import SHORT, Driver, ThreadExecutor, fan, fan_sum

ROOT = Path(__file__).parents[2]
WIDTH = 4
PAUSE = 0.1


class Program:
    """A driver in a session of processes of its own, so that nothing of it outlives the test."""

    def __init__(self, store: Store, trace: Path, pause: float) -> None:
        self.output = trace.with_name(f"output-{time.time_ns()}")
        command = [sys.executable, "-m", "tests.cluster.driving", store.url, str(trace), str(WIDTH), str(pause)]
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                start_new_session=True,
                env={**os.environ, "RAY_health_check_period_ms": "500", "RAY_health_check_initial_delay_ms": "500"},
            )

    def events(self) -> list[dict[str, Any]]:
        """Everything that it printed; a line that is not its own, but Ray's, is an error."""
        return [json.loads(line) for line in self.output.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.02)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def finish(self, seconds: float = 90.0) -> int:
        return self.process.wait(seconds)


@pytest.fixture
def start(disk: Store, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def begin(pause: float = PAUSE) -> Program:
        started.append(Program(disk, tmp_path / "trace", pause))
        return started[-1]

    yield begin
    for program in started:
        mine = _session_of(program.process.pid)
        for process in mine:
            process.kill()
        program.process.kill()
        program.process.wait()


def _session_of(leader: int) -> list[psutil.Process]:
    """The processes of a driver, also those whose parents are gone."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader:
                found.append(process)
        except (ProcessLookupError, PermissionError):
            continue
    return found


def computed(tmp_path: Path) -> Counter[str]:
    trace = tmp_path / "trace"
    return Counter(trace.read_text().splitlines() if trace.exists() else [])


def counted(tmp_path: Path) -> list[int]:
    trace = tmp_path / "trace.count"
    return [int(line.split()[1]) for line in trace.read_text().splitlines()] if trace.exists() else []


def finished(program: Program) -> set[str]:
    return {event["key"] for event in program.events() if event["state"] == "published"}


def test_two_drivers_on_one_store_publish_each_step_once(
    disk: Store, tmp_path: Path, start: Callable[..., Program]
) -> None:
    programs = [start(), start()]
    assert [program.finish() for program in programs] == [0, 0]
    results = [program.events()[-1] for program in programs]
    assert results == [{"state": "result", "sum": fan_sum(WIDTH)}] * 2
    assert set(computed(tmp_path).values()) == {1}
    assert len(computed(tmp_path)) == 2 * WIDTH + 1
    assert counted(tmp_path) == list(range(20))
    assert not [path for path in disk.paths("steps") if "lease-0002" in path]


def test_a_killed_driver_is_replaced_by_one_that_recomputes_no_finished_step(
    disk: Store, tmp_path: Path, start: Callable[..., Program]
) -> None:
    first = start()
    first.until(lambda: len(computed(tmp_path)) >= WIDTH)
    first.process.kill()
    first.finish()
    done = finished(first)
    assert done
    before = {key: Ledger(disk).find(key) for key in done}
    second = Driver(disk, ThreadExecutor())
    assert second.run(lambda flow: fan(flow, str(tmp_path / "trace"), WIDTH, PAUSE)) == fan_sum(WIDTH)
    assert {key: Ledger(disk).find(key) for key in done} == before
    assert not done & {handle.key for state, handle, _ in second.events if state == "started"}
    assert counted(tmp_path) == list(range(20))
    assert sum(computed(tmp_path).values()) - (2 * WIDTH + 1) <= 2  # what ran on its two CPUs when it died


@pytest.mark.slow
def test_a_driver_killed_within_a_step_loses_at_most_one_checkpoint_interval(
    tmp_path: Path, start: Callable[..., Program]
) -> None:
    first = start()
    first.until(lambda: len(counted(tmp_path)) >= 10)
    first.process.kill()
    first.finish()
    second = start()
    assert second.finish() == 0
    assert second.events()[-1] == {"state": "result", "sum": fan_sum(WIDTH)}
    assert sorted(set(counted(tmp_path))) == list(range(20))
    assert len(counted(tmp_path)) - 20 <= SHORT.checkpoint / PAUSE + 1


@pytest.mark.parametrize("part", ["raylet", pytest.param("gcs_server", marks=pytest.mark.slow)])
def test_a_driver_whose_ray_is_killed_says_so_and_the_next_one_goes_on(
    disk: Store, tmp_path: Path, start: Callable[..., Program], part: str
) -> None:
    pause = 1.0 if part == "gcs_server" else PAUSE  # long enough for its silence to be noticed
    first = start(pause)
    first.until(lambda: len(counted(tmp_path)) >= 5)
    (victim,) = [process for process in first.children() if process.name() == part]
    victim.kill()
    assert first.finish(60) == 3
    last = first.events()[-1]
    assert last["state"] == "lost"
    assert last["message"].startswith("Ray's ")
    second = Driver(disk, ThreadExecutor())
    assert second.run(lambda flow: fan(flow, str(tmp_path / "trace"), WIDTH, pause)) == fan_sum(WIDTH)
    assert sorted(set(counted(tmp_path))) == list(range(20))
    assert len(counted(tmp_path)) - 20 <= max(SHORT.checkpoint / pause, 1) + 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_workers_killed_at_random_change_no_result(
    disk: Store, tmp_path: Path, start: Callable[..., Program], seed: int
) -> None:
    chance = random.Random(seed)
    program = start()
    program.until(lambda: len(counted(tmp_path)) >= 1)
    kills = 0
    while program.process.poll() is None and kills < 4:
        time.sleep(chance.uniform(0.1, 1.0))
        try:
            busy = [process for process in program.children() if process.name().startswith(("ray::add", "ray::count"))]
            if busy:
                chance.choice(busy).send_signal(signal.SIGKILL)
                kills += 1
        except psutil.NoSuchProcess:
            continue
    assert program.finish() == 0
    assert program.events()[-1] == {"state": "result", "sum": fan_sum(WIDTH)}
    assert kills >= 2
    assert len(computed(tmp_path)) == 2 * WIDTH + 1
    assert sum(computed(tmp_path).values()) - (2 * WIDTH + 1) <= kills
