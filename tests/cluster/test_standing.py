"""Whether a process lives, judged from outside, and what a run is called by that."""

from __future__ import annotations

import time

import pytest

from cluster import runs
from cluster.ledger import Ledger
from cluster.owner import Owner
from cluster.runs import log_of
from cluster.standing import LINGER, SILENCE, Seems, drivers_of, holder, main_driver, run_state, seems
from cluster.store import Store
from tests.cluster.scenes import ELSEWHERE, GONE, Scene, age

FAR, DEAD, HERE = Owner.from_json(ELSEWHERE), Owner.from_json(GONE), Owner.me()


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are written when a test says so."""
    monkeypatch.setattr(runs, "FLUSH_SECONDS", 1e6)


@pytest.mark.parametrize(
    ("ended", "owner", "silent", "state"),
    [
        (False, FAR, 0.0, "at work"),
        (False, None, SILENCE - 1, "at work"),
        (False, HERE, SILENCE + 1, "silent"),
        (False, FAR, LINGER - 1, "silent"),
        (False, FAR, LINGER, "gone"),
        (False, DEAD, 0.0, "gone"),
        (True, FAR, 0.0, "ended"),
        (True, DEAD, LINGER, "ended"),
    ],
)
def test_a_process_seems_alive_by_its_signs_of_life_and_dead_where_that_can_be_seen(
    ended: bool, owner: Owner | None, silent: float, state: Seems
) -> None:
    assert seems(ended, owner, silent) == state


def test_a_shorter_patience_takes_a_silent_process_for_dead_earlier() -> None:
    assert seems(False, FAR, SILENCE + 1, linger=SILENCE) == "gone"
    assert seems(False, FAR, 0.0, linger=0.0) == "gone"


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_how_the_holder_of_a_lease_seems_is_asked_of_the_store_s_clock(
    disk: Store, skew: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(disk)
    lease = ledger.lease("a" * 64, "a")
    assert lease is not None
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + skew)
    assert holder(ledger, lease, disk.clock(), 60.0)[0] == "at work"
    state, silent = holder(ledger, lease, disk.clock() + 61.0, 60.0)
    assert state == "gone"
    assert silent == pytest.approx(61, abs=2)
    ledger.beat(lease, state="released")
    assert holder(ledger, lease, disk.clock())[0] == "ended"


def test_a_torn_lease_is_held_by_nobody(disk: Store) -> None:
    ledger = Ledger(disk)
    assert ledger.lease("a" * 64, "a")
    (path,) = disk.paths("steps")
    disk.put(path, b"torn")
    lease = ledger.current_lease("a" * 64)
    assert lease is not None
    assert holder(ledger, lease, disk.clock())[0] == "ended"


def test_the_newest_driver_at_work_speaks_for_the_run_or_else_the_newest(disk: Store) -> None:
    for number, owner in enumerate((ELSEWHERE, ELSEWHERE, GONE), start=1):
        Scene(disk, driver=f"d{number}", owner=owner).flush()
    age(disk, "runs", 60)
    scene = Scene(disk, driver="d4", owner=ELSEWHERE)
    scene.end()
    drivers, now = drivers_of(disk, "run-1", log_of(disk, "run-1")), disk.clock()
    assert {driver.id: driver.state(now) for driver in drivers} == {
        "d1": "silent",
        "d2": "silent",
        "d3": "gone",
        "d4": "ended",
    }
    newest = main_driver(drivers, now)
    assert newest is not None
    assert newest.id == "d4"  # somebody went on to the end when the others were lost
    disk.put("runs/run-1/beats/d2", b"")
    age(disk, "runs/run-1/beats", 5)
    best = main_driver(drivers_of(disk, "run-1", log_of(disk, "run-1")), disk.clock())
    assert best is not None
    assert (best.id, best.state(now), best.owner) == ("d2", "at work", FAR)


@pytest.mark.parametrize(
    ("driver", "steps", "state"),
    [
        ("at work", {"stored", "failed"}, "running"),
        ("gone", {"running", "failed"}, "running"),
        ("silent", {"stored", "failed"}, "silent"),
        ("gone", {"stored", "failed"}, "failed"),
        ("ended", {"stored"}, "finished"),
        ("ended", {"stored", "waiting"}, "stopped"),
        ("gone", {"stored", "silent"}, "stopped"),
        (None, {"waiting"}, "stopped"),
    ],
)
def test_a_run_is_called_by_its_driver_first_and_then_by_its_steps(
    driver: Seems | None, steps: set[str], state: str
) -> None:
    assert run_state(driver, steps) == state
