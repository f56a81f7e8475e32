"""A run whose cluster is lost: what it ends with, whether it waits for another, and what is said of it meanwhile."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from cluster import runs
from cluster.collect import collect
from cluster.overview import Overview
from cluster.runs import events_of
from cluster.session import ClusterUnreachable
from cluster.standing import LINGER
from cluster.store import Store
from tests.cluster.scenes import ELSEWHERE, GONE, Scene, age
from tests.workflows.conftest import Inline, record_run, write_recipe
from workflows.command import cli, launch, rejoin
from workflows.command.driver import Driver
from workflows.command.exit_codes import Exit
from workflows.command.inspect import run_record, run_view, runs_records, runs_table
from workflows.command.options import Options
from workflows.command.recipe import load_recipe
from workflows.command.terminal import out
from workflows.command.top_view import top_view

WAIT = 600.0


class Lost(Inline):
    """A cluster that is lost while its first attempts are at work, after a signal if there is one."""

    def __init__(self, number: signal.Signals | None) -> None:
        super().__init__()
        self._number = number

    def submit(self, order: Any) -> Any:
        return asyncio.get_running_loop().create_future()

    async def outcome(self, running: Any) -> Any:
        if self._number is not None:
            signal.raise_signal(self._number)
            await asyncio.sleep(0.05)
        raise ClusterUnreachable("Ray's head at h:1 has not answered for 20 s")


def driven(store: Store, folder: Path, number: signal.Signals | None, **asked: Any) -> tuple[Driver, Exit, Any]:
    """A driver that has ended, its code, and the event that says so."""
    recipe = load_recipe(str(write_recipe(folder)))
    run = record_run(store, recipe)
    options = Options(store.url, folder, **{"address": "h:1", "rejoin": WAIT / 60, **asked})
    driver = Driver(recipe, store, Lost(number), options, run)
    code = asyncio.run(driver.drive())
    return driver, code, list(events_of(store, run.id))[-1]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, Exit.INTERRUPTED), (signal.SIGTERM, Exit.PREEMPTED)], ids=["ctrl-c", "term"]
)
def test_who_was_asked_to_stop_has_stopped_also_where_the_cluster_is_lost_meanwhile(
    disk: Store, tmp_path: Path, number: signal.Signals, code: Exit
) -> None:
    driver, ended, event = driven(disk, tmp_path, number)
    assert (ended, driver.lost) == (code, True)  # lost: Ray is abandoned all the same
    assert (event["code"], "waits" in event) == (code, False)
    assert driver.problems == ["Ray's head at h:1 has not answered for 20 s"]


@pytest.mark.parametrize(
    ("asked", "waits"), [({}, WAIT), ({"rejoin": 0.0}, None), ({"address": "auto"}, None)], ids=["asked", "0", "auto"]
)
def test_a_driver_that_lost_its_cluster_says_how_long_it_waits(
    disk: Store, tmp_path: Path, asked: dict[str, Any], waits: float | None
) -> None:
    driver, code, event = driven(disk, tmp_path, None, **asked)
    assert (code, driver.lost, event["code"]) == (Exit.INFRASTRUCTURE, True, Exit.INFRASTRUCTURE)
    assert event.get("waits") == waits


@pytest.mark.parametrize(
    ("code", "address", "minutes", "waited"),
    [
        (Exit.INFRASTRUCTURE, "h:1", 2.0, [2.0]),
        (Exit.INFRASTRUCTURE, "h:1", 0.0, []),
        (Exit.INFRASTRUCTURE, "auto", 2.0, []),
        (Exit.PREEMPTED, "h:1", 2.0, []),
        (Exit.INTERRUPTED, "h:1", 2.0, []),
    ],
)
def test_another_cluster_is_waited_for_unless_somebody_asked_to_stop(
    monkeypatch: pytest.MonkeyPatch, code: Exit, address: str, minutes: float, waited: list[float]
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(launch, "launch", lambda *given: launch.Ended(code, "r-1", []))
    monkeypatch.setattr("cluster.session.is_abandoned", lambda: True)
    monkeypatch.setattr(rejoin, "start_again_when_back", lambda address, minutes, say: seen.append(minutes))
    with pytest.raises(typer.Exit) as end:
        cli._launch(None, Options(address=address, rejoin=minutes), False, lambda: None)  # type: ignore[arg-type]
    assert (end.value.exit_code, seen) == (code, waited)


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are written when a test says so."""
    monkeypatch.setattr(runs, "FLUSH_SECONDS", 1e6)


def lost(store: Store, owner: dict[str, Any] = ELSEWHERE) -> Scene:
    """A run whose driver has lost its cluster, and waits."""
    scene = Scene(store, owner=owner)
    scene.tell("started", "a" * 64)
    scene.log.write("run", state="ended", driver=scene.driver, code=3, waits=WAIT)
    scene.flush()
    return scene


def shown(view: Any) -> str:
    with out.capture() as captured:
        out.print(view)
    return " ".join(captured.get().split())


@pytest.mark.usefixtures("no_threads")
def test_a_driver_that_waits_for_its_cluster_is_called_so_by_every_command(disk: Store) -> None:
    lost(disk)
    age(disk, "runs", 60)
    assert "waits for its cluster, 0 of 1 steps stored" in shown(runs_table(runs_records(disk)))
    assert run_record(disk, "run-1")["state"] == "waiting"
    line = "driver on otherhost waits for its cluster, lost 60 s ago (up to 10 minutes); it goes on by itself"
    views = [run_view(disk, "run-1"), top_view(Overview(disk).look(), disk.url)]  # found among all runs
    for text in map(shown, views):
        assert line in text
        assert "resume" not in text
    with pytest.raises(ValueError, match="run-1 is at work"):
        collect(disk, ["run-1"], remove=True)


@pytest.mark.usefixtures("no_threads")
@pytest.mark.parametrize(("seconds", "owner"), [(WAIT + 1, ELSEWHERE), (LINGER + 1, ELSEWHERE), (5, GONE)])
def test_whoever_waited_in_vain_or_is_dead_is_not_said_to_wait(
    disk: Store, seconds: float, owner: dict[str, Any]
) -> None:
    lost(disk, owner)
    age(disk, "runs", seconds)
    assert runs_records(disk)[0]["state"] == "stopped"
    assert "waits" not in shown(run_view(disk, "run-1"))
    (now,) = Overview(disk, "run-1").look()
    assert now.driver_state == "ended"
    collect(disk, ["run-1"], remove=True)
    assert disk.folders("runs") == []


@pytest.mark.usefixtures("no_threads")
def test_a_driver_that_went_on_takes_the_place_of_the_one_that_waited(disk: Store) -> None:
    lost(disk)
    age(disk, "runs", 60)
    again = Scene(disk, driver="d2", owner=ELSEWHERE)
    again.flush()
    assert runs_records(disk)[0]["state"] == "running"
    time.sleep(0.01)
    again.end()
    assert runs_records(disk)[0]["state"] == "stopped"
