"""Tracking: a process beside the driver that follows a run's events in the store and shows them in Weights & Biases.

The events are the truth and W&B a view of them: what tracking misses, `sync` brings later, and nothing waits for it.
"""

from __future__ import annotations

import argparse
import contextlib
import netrc
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

import psutil

from cluster.follower import Follower
from cluster.runs import Run, all_runs
from cluster.store import Store, StoreError
from cluster.tracking_cursor import Cursor
from cluster.wandb_sink import Mode, Sink, TrackingFailed, one_line

POLL_SECONDS = 1.0
LAZIEST_SECONDS = 10.0
DUTY = 0.005
"""The part of its time that a tracker spends looking, between these two pauses: a long run has many events to list."""
FINISH_SECONDS = 30.0
"""Given to W&B to take the rows of one W&B run at its end."""
FAREWELL_SECONDS = 90
"""After which a tracker whose driver is gone ends, whatever W&B is doing."""
SYNC_SECONDS = 600.0
"""Given to each W&B run by `sync`, where somebody waits for it on purpose."""
HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
"""W&B's own servers, as versions of its client call them."""


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
    sink = Sink(mode, folder, SYNC_SECONDS)
    for run in runs:
        follower = Follower(store, run, sink, Cursor(store, run.id, mode))
        if not follower.is_behind():
            pushed[run.id] = 0
            continue
        try:
            follower.cursor.take_soon()
            follower.look()
            pushed[run.id] = follower.finish()
        except TrackingFailed:
            sink.abandon()
            raise
        finally:
            follower.cursor.release()
    return pushed


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
                pause = min(max(POLL_SECONDS, (time.monotonic() - began) / DUTY), LAZIEST_SECONDS)
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
        with contextlib.suppress(psutil.NoSuchProcess, subprocess.TimeoutExpired):
            tracker = psutil.Process(process.pid)
            for part in [tracker, *tracker.children(recursive=True)]:
                part.kill()
            process.wait(timeout=5)
        return f"W&B was not done after {patience:g} s"
    if process.returncode == 0:
        return ""
    return answer.strip() or f"the tracking process ended with code {process.returncode}"


def _has_key() -> bool:
    """Whether W&B would find an API key: in the environment, or where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    server = os.environ.get("WANDB_BASE_URL")
    hosts = (urlsplit(server).netloc,) if server else HOSTS
    named = os.environ.get("NETRC")
    files = [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    try:
        known = [netrc.netrc(file) for file in files if file.is_file()]
    except (OSError, netrc.NetrcParseError):  # unreadable to W&B as well
        return False
    return any(keys.authenticators(host) is not None for keys in known for host in hosts)


if __name__ == "__main__":
    sys.exit(main())
