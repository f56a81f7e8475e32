"""What `hedgerow top` shows of running work, from a terminal that drives nothing."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster import runs
from cluster.ledger import Ledger
from cluster.overview import Overview
from cluster.owner import Owner
from cluster.runs import EventLog, Run, all_runs, write_plan
from cluster.standing import SILENCE, RunNow
from cluster.store import Store
from workflows.command.cli import app
from workflows.command.terminal import out
from workflows.command.top_view import NOTHING, seconds_left, top_view

GONE = {**Owner.me().to_json(), "started": 1.0}
PLAN = [
    {"key": f"{number:064d}", "at": {"level": number}, "task": {"kind": "train"}, "inputs": {}} for number in range(4)
]


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "FLUSH_SECONDS", 1e6)


def begin(store: Store, run_id: str = "small-1", owner: dict[str, Any] | None = None) -> EventLog:
    """A run of four steps: one done in ten seconds, one running at its half, one queued."""
    Run.open(store, run_id, {"name": run_id})
    write_plan(store, run_id, PLAN)
    log = EventLog(store, run_id, f"d{run_id[-1]}")
    log.write("run", state="started", driver="d1", owner=owner or Owner.me().to_json(), cpus=2, gpus=0)
    for number, state in enumerate(["published", "started", "started"]):
        news: dict[str, Any] = {"seconds": 10.0} if state == "published" else {}
        log.write("step", state=state, key=PLAN[number]["key"], kind="train", at=PLAN[number]["at"], **news)
    log._flush()
    ledger = Ledger(store)
    about = {"node": "abcdef0123456789", "began": time.time() - 5}
    if lease := ledger.lease(PLAN[1]["key"], "d1-1", about=about):
        ledger.beat(lease, progress=(1, 2, "epoch 1"))
    return log


def text_of(runs_: list[RunNow]) -> str:
    with out.capture() as shown:
        out.print(top_view(runs_, "/a store"))
    return shown.get()


def top(*words: str) -> str:
    made = CliRunner().invoke(app, ["top", *words])
    assert made.exit_code == 0, made.output
    return made.output


def test_a_snapshot_names_nodes_steps_and_the_time_left(disk: Store) -> None:
    begin(disk)
    text = text_of(Overview(disk).look())
    assert "run small-1: 1 of 4 steps done, 1 running, 1 queued" in text
    assert "about 12 s left" in text  # three steps of 10 s, one of them half done, on two CPUs
    assert "is at work" in text
    row = next(line for line in text.splitlines() if "epoch 1" in line)
    assert "level 1" in row
    assert "abcdef01 " in row
    assert "abcdef0123456789" not in row


def test_steps_that_wait_for_each_other_take_longer_than_the_work_alone(disk: Store) -> None:
    log = begin(disk)
    chain = [{**step, "inputs": {"x": PLAN[number - 1]["key"]} if number else {}} for number, step in enumerate(PLAN)]
    write_plan(disk, "small-1", chain)
    assert seconds_left(Overview(disk).look()[0]) == 25
    log.close()


def test_a_dead_driver_is_told_with_the_command_that_goes_on(disk: Store) -> None:
    begin(disk, owner=GONE)
    (run,) = Overview(disk).look()
    text = text_of([run])
    assert "is dead" in text
    assert "hedgerow resume small-1 --store '/a store'" in " ".join(text.split())  # however wide the screen is
    assert "left" not in text.splitlines()[0]


def test_a_driver_on_another_machine_that_writes_nothing_is_called_silent(disk: Store) -> None:
    begin(disk, owner={"host": "far/boot/pid", "pid": 1, "started": 0.0})
    then = time.time() - SILENCE - 3
    for path in disk.paths("runs"):
        os.utime(Path(disk.url) / path, (then, then))
    assert f"driver on far has been silent for {SILENCE + 3:.0f} s; if it is dead" in text_of(Overview(disk).look())


def test_failures_stand_in_a_table_by_class(disk: Store) -> None:
    log = begin(disk)
    log.write("step", state="retried", key="e" * 64, kind="train", at={}, cause="oom", message="it [took] too much")
    log.write("step", state="failed", key="e" * 64, kind="train", at={}, cause="oom", message="it [took] too much")
    log._flush()
    row = next(line for line in text_of(Overview(disk).look()).splitlines() if line.strip().startswith("oom"))
    assert row.split()[1:3] == ["1", "1"]
    assert "it [took] too much" in row


def test_without_a_name_all_runs_at_work_are_shown_and_none_is_said(disk: Store) -> None:
    assert NOTHING in top("--store", disk.url)
    assert json.loads(top("--json", "--store", disk.url)) == []
    begin(disk)
    begin(disk, "small-2")
    records = json.loads(top("--json", "--store", disk.url))
    assert {record["run"] for record in records} == {"small-1", "small-2"}
    assert records[0]["seconds_left"] == pytest.approx(12.5)
    assert "small-2" not in top("small-1", "--store", disk.url)


def test_a_run_that_is_not_there_is_one_line_before_anything(disk: Store) -> None:
    made = CliRunner().invoke(app, ["top", "nope", "--store", disk.url])
    assert "no run starts with 'nope'" in str(made.exception)


def test_a_finished_run_is_shown_when_named(finished: Store) -> None:
    run = all_runs(finished)[0]
    assert NOTHING in top("--store", finished.url)
    (record,) = json.loads(top(run.id[:6], "--json", "--store", finished.url))
    assert record["driver"] == "ended"
    assert record["steps_done"] == record["steps_total"] > 5


def test_events_say_what_steps_took_so_that_no_manifest_is_read(finished: Store) -> None:
    run = all_runs(finished)[0]
    (seen,) = Overview(finished, run.id).look()
    assert seen.typical.keys() == {step.kind for step in seen.steps.values()}
    assert seen.driver is not None
    assert seen.driver.owner == Owner.me()


@pytest.mark.parametrize("leave", ["q", "Ctrl-C"])
def test_the_live_view_follows_and_is_left_without_an_error(disk: Store, leave: str) -> None:
    log = begin(disk)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "workflows.command.cli", "top", "--store", disk.url]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""

    def until(words: bytes) -> None:
        nonlocal seen
        end = time.monotonic() + 30
        while words not in seen:
            assert time.monotonic() < end, seen.decode(errors="replace")[-2000:]
            if select.select([ours], [], [], 0.2)[0]:
                seen += os.read(ours, 1 << 16)

    try:
        until(b"1 of 4 steps done")
        log.write("step", state="published", key=PLAN[1]["key"], kind="train", at={}, seconds=10.0)
        log._flush()
        until(b"2 of 4 steps done")
        if leave == "q":
            os.write(ours, b"q")
        else:
            child.send_signal(signal.SIGINT)
        assert child.wait(10) == 0
    finally:
        child.kill()
        child.wait()
        os.close(ours)
