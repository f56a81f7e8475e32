"""What the figures of faults are made of: the measure is measured, on traces that are written by hand."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.engine import Engine
from cluster.flow import Flow
from tests.cluster.driving import ThreadExecutor
from tests.cluster.faults.climbs import Work
from tests.cluster.faults.report import table
from tests.cluster.faults.trials import Trial, trial

SMALL = Work(width=1, end=3, pause=0.0)


def test_a_manifest_that_was_another_for_a_moment_is_noticed_on_every_store(shared_url: str, tmp_path: Path) -> None:
    with trial("", tmp_path / "run", SMALL, url=shared_url) as run:
        asyncio.run(SMALL.run(Flow(Engine(run.store, ThreadExecutor())), ""))
        path = next(path for path in run.store.paths("steps") if path.endswith("/manifest.json"))
        right = run.store.get(path) or b""
        run.store.put(path, json.dumps({**json.loads(right), "attempt": "another"}).encode())
        time.sleep(1.0)  # five looks of the watch
        run.store.put(path, right)
        with pytest.raises(AssertionError, match="replaced by another"):
            run.check()


def test_an_undisturbed_run_is_found_to_be_whole(shared_url: str, tmp_path: Path) -> None:
    with trial("", tmp_path / "run", SMALL, url=shared_url) as run:
        asyncio.run(SMALL.run(Flow(Engine(run.store, ThreadExecutor())), ""))
        run.check()


def told(run: Trial, lines: list[tuple[float, int, str]], *events: tuple[float, int | None, str]) -> None:
    """Lets climbs have noted these lines, and a driver have said these events: when, whose and what."""
    records = [{"t": when, "step": step, "what": what, "at": 0, "node": "n"} for when, step, what in lines]
    run.trace.write_text("".join(json.dumps(record) + "\n" for record in records))
    said = [{"t": when, "number": number, "state": state} for when, number, state in events]
    driver: Any = SimpleNamespace(states=lambda state: [event for event in said if event["state"] == state])
    driver.kill = lambda: None
    run.drivers.append(driver)


def struck(run: Trial, monkeypatch: pytest.MonkeyPatch, at: float, repaired: float | None = None) -> None:
    """Marks a fault and its repair at moments of a trace."""
    with monkeypatch.context() as clock:
        clock.setattr(time, "monotonic", lambda: at)
        run.strike("n")
        if repaired is not None:
            clock.setattr(time, "monotonic", lambda: repaired)
            run.repaired()


def test_recovery_is_until_the_last_of_the_struck_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with trial("", tmp_path / "run", Work(width=2)) as run:
        told(run, [(1, 0, "begin"), (1, 1, "begin")])
        struck(run, monkeypatch, at=5)
        assert run.affected == {0, 1}
        told(run, [(1, 0, "begin"), (1, 1, "begin"), (7, 0, "begin"), (9, 1, "begin"), (12, 1, "begin")])
        assert run.recovery() == 4


def test_what_begins_before_the_repair_is_no_recovery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with trial("", tmp_path / "run", Work(width=1)) as run:
        told(run, [(1, 0, "begin")])
        struck(run, monkeypatch, at=5, repaired=10)
        told(run, [(1, 0, "begin"), (7, 0, "begin"), (13, 0, "begin")], (8, 0, "published"), (12, None, "published"))
        assert run.recovery() == 8
        assert run.resumed() == 7


def test_a_standstill_is_the_longest_silence_of_a_step_since_the_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trial("", tmp_path / "run", Work(width=2)) as run:
        told(run, [(6, 1, "end")])
        struck(run, monkeypatch, at=10)
        climbs = [(1.0, 0, "begin"), (9.0, 0, "link"), (11.0, 0, "end"), (6.0, 1, "end")]
        told(run, climbs, (9.0, 1, "published"), (11.5, 0, "published"), (12.0, None, "started"))
        assert run.standstill() == 2
        run.drivers.clear()
        told(run, climbs, (11.5, 0, "published"), (12.0, None, "started"), (15.0, None, "published"))
        assert run.standstill() == 3


def test_the_table_shows_the_middle_the_95th_of_a_hundred_and_the_most() -> None:
    """A row for each fault and interval of checkpoints; what was not measured is a dash."""
    some = [{"fault": "f", "checkpoint": 1.0, "lost": float(n), "recovery": None, "refused": 1} for n in range(1, 101)]
    rows = table([*some, {"fault": "f", "checkpoint": 10.0, "recovery": 2.0}]).splitlines()[2:]
    assert rows == [
        "| f | 100 | 1 | 50.0 / 95.0 / 100.0 | - | - | 100 |",
        "| f | 1 | 10 | - | 2.0 / 2.0 / 2.0 | - | - |",
    ]
