"""Tracking: a process beside the driver that follows a run's events in the store and shows them in Weights & Biases.

The events are the truth and W&B a view of them: what tracking misses, `sync` brings later, and nothing waits for it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import netrc
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import psutil

from cluster.flow import describe
from cluster.ledger import Damaged, Ledger
from cluster.runs import Run, all_runs
from cluster.store import Store, StoreError
from cluster.tracking_cursor import Cursor
from cluster.wandb_sink import Chain, Mode, Sink, TrackingFailed, one_line, scalars

POLL_SECONDS = 1.0
DUTY = 0.05
"""The most of its time that a tracker spends looking: to list a long run's events on a remote store takes a while."""
QUIET_SECONDS = 60.0
"""Without a step under way after which a chain's W&B run is closed; it is opened again if more comes."""
FINISH_SECONDS = 30.0
"""Given to W&B to take the rows of one W&B run at its end."""
FAREWELL_SECONDS = 90
"""After which a tracker whose driver is gone ends, whatever W&B is doing."""
SYNC_SECONDS = 600.0

UNDER_WAY = ("asked", "waiting", "started", "retried", "recomputed")
DONE = ("published", "found")


def choose_mode(asked: str | None = None) -> Literal["offline", "online", "disabled"]:
    """The mode asked for here or in `WANDB_MODE`; else online for those who have an API key, offline for others.

    Nothing is asked over the network.

    Raises:
        ValueError: there is no such mode.
    """
    mode = asked or os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
    if mode not in ("offline", "online", "disabled"):
        raise ValueError(f"--wandb: '{mode}' is no mode; allowed: offline, online, disabled")
    return mode  # type: ignore[return-value]


class Tracker:
    """The driver's end of tracking: started, forgotten, stopped. It never raises and never waits without a bound."""

    def __init__(self, run_id: str, process: subprocess.Popen[str] | None, trouble: str = "") -> None:
        self._run_id = run_id
        self._process = process
        self._trouble = trouble

    @classmethod
    def start(cls, store_url: str, run_id: str, mode: str, folder: Path) -> Self:
        """Starts the process that tracks a run, unless the mode is `disabled`.

        Args:
            store_url: where the run's events are; the process opens it anew.
            run_id: the run.
            mode: `offline`, `online` or `disabled`.
            folder: W&B's files go to `wandb/` in it; outside the store.
        """
        if mode == "disabled":
            return cls(run_id, None)
        environment = dict(os.environ)
        if mode == "offline":
            environment.pop("WANDB_API_KEY", None)  # what it does not have it cannot write anywhere
        command = [sys.executable, "-m", "cluster.tracking", store_url, run_id, "--mode", mode]
        try:
            process = subprocess.Popen(
                [*command, "--folder", str(folder.absolute())],
                stdin=subprocess.PIPE,  # its end tells the tracker that this driver is done, or dead
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the driver
                env=environment,
                text=True,
            )
        except OSError as error:
            return cls(run_id, None, one_line(error))
        return cls(run_id, process)

    @property
    def pid(self) -> int | None:
        """The tracking process, if there is one."""
        return self._process.pid if self._process else None

    def stop(self, patience: float = 40.0) -> str:
        """Lets the tracker finish, for this many seconds; call it after the event log is closed.

        Returns:
            nothing, or one line for the user when W&B does not have everything.
        """
        if self._process is not None:
            self._trouble = _ended(self._process, patience)
            self._process = None
        if not self._trouble:
            return ""
        return (
            f"tracking: {self._trouble}; results are not affected, "
            f"`hedgerow sync {self._run_id}` brings W&B up to date later"
        )


def sync(store: Store, run_id: str | None, folder: Path, mode: Mode = "online") -> dict[str, int]:
    """Brings W&B up to date from the events of one run, or of all, in this process.

    Args:
        store: with the runs.
        run_id: the run, or the beginning of its id; None for every run.
        folder: W&B's files go to `wandb/` in it.
        mode: `online` pushes, `offline` writes the files that were never written.

    Returns:
        the finished steps that were new to W&B, by run.

    Raises:
        ValueError: there is no such run.
        TrackingFailed: W&B cannot be reached or does not take the rows, or a tracker is at work on the run.
        StoreError: the store cannot be read.
    """
    runs = all_runs(store) if run_id is None else [Run.load(store, run_id)]
    if mode == "online" and not _has_key():
        raise TrackingFailed("no W&B API key: set WANDB_API_KEY or run `wandb login`")
    pushed = {}
    for run in runs:
        follower = Follower(store, run, Sink(mode, folder, SYNC_SECONDS), Cursor(store, run.id, mode))
        if not follower.is_behind():
            pushed[run.id] = 0
            continue
        try:
            follower.cursor.take_soon()
            follower.look()
            pushed[run.id] = follower.finish()
        finally:
            follower.cursor.release()
    return pushed


class Follower:
    """Turns the events of a run into rows of W&B runs: one W&B run per chain, one row per finished step and epoch."""

    def __init__(self, store: Store, run: Run, sink: Sink, cursor: Cursor) -> None:
        self.cursor = cursor
        self._store = store
        self._ledger = Ledger(store)
        self._run = run
        self._sink = sink
        self._read: dict[str, str] = {}
        self._fresh: list[tuple[Mapping[str, Any], str]] = []
        self._given: set[str] = set()
        self._unsure: dict[str, list[str]] = {}
        """Steps whose rows an open W&B run was given, by its id: it has them for sure when it is closed."""
        self._under_way: dict[str, set[str]] = {}
        self._failed: dict[str, set[str]] = {}
        self._last: dict[str, float] = {}

    def is_behind(self) -> bool:
        """Whether there are events that W&B was not brought up to."""
        self.cursor.load()
        return any(self._unread())

    def look(self) -> None:
        """Logs the steps that finished since the last look.

        Raises:
            StoreError: the store does not answer; the next look goes on where this one stopped.
            TrackingFailed: W&B does not take a row.
        """
        self._read_events()
        while self._fresh:
            at, key = self._fresh[0]
            if key not in self.cursor.logged and key not in self._given:
                self._log_step(at, key)
            del self._fresh[0]

    def close_quiet(self) -> None:
        """Closes the W&B runs of chains where nothing is under way any more."""
        for chain_id in self._sink.open:
            if not self._under_way.get(chain_id) and time.monotonic() - self._last[chain_id] > QUIET_SECONDS:
                self._close(chain_id)

    def finish(self) -> int:
        """Closes all W&B runs, and remembers what they took, so that it is not logged again.

        Returns:
            the steps logged.

        Raises:
            TrackingFailed: one of them could not be closed; the others are.
            StoreError: the store does not take the record of it.
        """
        failures = []
        for chain_id in self._sink.open:
            try:
                self._close(chain_id)
            except TrackingFailed as failure:
                failures.append(failure)
        if failures:
            raise failures[0]
        self.cursor.read |= self._read
        self.cursor.save()
        return len(self._given)

    def _read_events(self) -> None:
        for log, path in self._unread():
            for line in (self._store.get(path) or b"").splitlines():
                event = json.loads(line)
                if event["event"] == "step":
                    self._note(event)
            self._read[log] = path

    def _unread(self) -> Iterator[tuple[str, str]]:
        """The objects with events to read, after the driver's log that each belongs to.

        Drivers may run side by side, so there is a place to go on from for each.
        """
        for path in sorted(self._store.paths(f"runs/{self._run.id}/events")):
            log = path.rpartition("-")[0]
            if path > max(self._read.get(log, ""), self.cursor.read.get(log, "")):
                yield log, path

    def _note(self, event: Mapping[str, Any]) -> None:
        at, key, state = event.get("at", {}), event["key"], event["state"]
        chain_id = chain_id_of(self._run.id, at)
        under_way = self._under_way.setdefault(chain_id, set())
        failed = self._failed.setdefault(chain_id, set())
        if state in UNDER_WAY:
            under_way.add(key)
        else:
            under_way.discard(key)
        if state == "failed":
            failed.add(key)
        if state in DONE:
            failed.discard(key)
            self._fresh.append((at, key))

    def _log_step(self, at: Mapping[str, Any], key: str) -> None:
        try:
            published = self._ledger.find(key)
            if published is None:  # set aside since; it is told again when it is there again
                return
            curves = published.read("history.jsonl") if "history.jsonl" in published.manifest["files"] else b""
        except Damaged:
            return
        chain = chain_of(self._run, at)
        kind = published.manifest["task"]["kind"]
        place = {name: at[name] for name in ("level",) if name in at}
        rows: list[dict[str, Any]] = [dict(scalars(json.loads(line), f"curves/{kind}")) for line in curves.splitlines()]
        rows.append({**dict(scalars(published.metrics, kind)), "key": key[:12]})
        step = self.cursor.reserve(chain.id, len(rows))
        for number, row in enumerate(rows):
            self._sink.log(chain, step + number, {**row, **place})
        if place:
            self._sink.chart_by_level(chain, kind)
        self._unsure.setdefault(chain.id, []).append(key)
        self._given.add(key)
        self._last[chain.id] = time.monotonic()

    def _close(self, chain_id: str) -> None:
        self._sink.close(chain_id, 1 if self._under_way.get(chain_id) or self._failed.get(chain_id) else 0)
        self.cursor.logged.update(self._unsure.pop(chain_id))
        self.cursor.save()


def chain_id_of(run_id: str, at: Mapping[str, Any]) -> str:
    """The id of the W&B run for a place in a run, whatever the level: the same in every process and every resume."""
    place = json.dumps(_without_level(at), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{run_id} {place}".encode()).hexdigest()[:16]


def _without_level(at: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in at.items() if name != "level"}


def chain_of(run: Run, at: Mapping[str, Any]) -> Chain:
    """The W&B run for a place in a run."""
    name, recipe, place = run.record["name"], run.record.get("recipe", {}), _without_level(at)
    return Chain(
        id=chain_id_of(run.id, at),
        name=describe(place) or name,
        project=name,
        group=run.id,
        job_type=recipe.get("kind", "chain"),
        config={**recipe, "at": place},
    )


def main(arguments: list[str] | None = None) -> int:
    """The tracking process: follows a run until its standard input ends, then closes the W&B runs."""
    os.nice(19)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # whoever ends the driver ends this too, a moment later
    parser = argparse.ArgumentParser(prog="python -m cluster.tracking")
    parser.add_argument("store")
    parser.add_argument("run")
    parser.add_argument("--mode", choices=("offline", "online"), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args(arguments)
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):  # the driver reads one line, and W&B may print more
        os.dup2(nowhere, stream.fileno())
    try:
        _follow(options)
    except Exception as error:
        with contextlib.suppress(OSError):  # the driver may be gone
            answer.write(one_line(error))
            answer.close()
        os._exit(1)  # not through W&B's exit hooks: they may wait for what just failed
    return 0


def _follow(options: argparse.Namespace) -> None:
    store = Store.open(options.store)
    sink = Sink(options.mode, options.folder, FINISH_SECONDS)
    cursor = Cursor(store, options.run, options.mode)
    follower = Follower(store, Run.load(store, options.run), sink, cursor)
    over = mine = False
    pause = 0.0
    try:
        while not over:
            over = _driver_is_done(pause)
            began = time.monotonic()
            try:
                mine = mine or cursor.take()
                if mine:
                    cursor.beat()
                    follower.look()
                    follower.close_quiet()
            except StoreError:  # away for a moment, perhaps
                continue
            finally:
                pause = max(POLL_SECONDS, (time.monotonic() - began) / DUTY)
        if not mine:
            cursor.take_soon()
        follower.look()
        follower.finish()
    finally:
        cursor.release()


def _driver_is_done(seconds: float) -> bool:
    """Waits this long for the end of standard input, which comes when the driver says so and when it dies."""
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return False
    signal.alarm(FAREWELL_SECONDS)
    return True


def _ended(process: subprocess.Popen[str], patience: float) -> str:
    """Ends a tracker: with its standard input, or by force.

    Returns:
        what went wrong, in one line, or nothing.
    """
    try:
        answer, _ = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(psutil.NoSuchProcess):
            tracker = psutil.Process(process.pid)
            for part in [tracker, *tracker.children(recursive=True)]:
                part.kill()
        process.communicate()
        return f"W&B was not done after {patience:g} s"
    if process.returncode == 0:
        return ""
    return answer.strip() or f"the tracking process ended with code {process.returncode}"


def _has_key() -> bool:
    """Whether W&B would find an API key: in the environment, or where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    named = os.environ.get("NETRC")
    files = [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    try:
        return any(netrc.netrc(file).authenticators(host) is not None for file in files if file.is_file())
    except (OSError, netrc.NetrcParseError):  # unreadable to W&B as well
        return False


if __name__ == "__main__":
    sys.exit(main())
