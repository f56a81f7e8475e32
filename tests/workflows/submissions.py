"""What tests of `hedgerow submit` share: a tree to send, a command line to call, a line to cut."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import psutil

from cluster.job_server import JobServer
from cluster.runs import all_runs, finished_steps
from cluster.store import Store
from tests.cluster.clusters import Cluster
from workflows.command import cli

PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "planted-aws-secret-0123456789abcdefghij",
    "WANDB_API_KEY": "planted0wandb0key0123456789abcdef0123456",
    "RAY_AUTH_TOKEN": "planted0ray0token0123456789abcdef",
}
"""Secrets of the cluster and of whoever submits, to look for in all that is written."""
TALKER = """
import signal, sys, time
def bye(*signal):
    print("bye", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, bye)
told = dict(zip(sys.argv, sys.argv[1:]))
lines, pause, code = int(told["--workers"]), float(told["--checkpoint"]), int(told["--wandb"])
for number in range(lines):
    print(f"line {number} of {lines} ε", flush=number % 7 == 0)
    time.sleep(pause)
sys.exit(code)
"""
"""Stands in for hedgerow's command line in a tree: it runs only if the files that were sent do."""


def apart_from(made: Cluster) -> None:
    """Adds a node with a folder of its own, as on another machine: two in one unpack over each other's packages."""
    made.add(1, options=["--temp-dir", str(made.folder / "node")])


class Called:
    """A command line that has ended, in this process."""

    def __init__(self, *words: str, cwd: Path | None = None) -> None:
        printed, warned = io.StringIO(), io.StringIO()
        before, here = sys.argv, Path.cwd()
        sys.argv = ["hedgerow", *words]
        os.chdir(cwd or here)
        self.code: Any = 0
        try:
            with redirect_stdout(printed), redirect_stderr(warned):
                cli.main()
        except SystemExit as end:
            self.code = int(end.code or 0)
        finally:
            sys.argv = before
            os.chdir(here)
        self.out, self.err = printed.getvalue(), warned.getvalue()


def talk(lines: int, pause: float = 0.1, code: int = 0) -> list[str]:
    """The command that prints so many lines, so many seconds apart, and ends with this code."""
    options = ["--workers", str(lines), "--checkpoint", str(pause), "--wandb", str(code)]
    return ["run", "quickstart", "--store", "/shared/store", *options]


def wait_for(server: JobServer, job_id: str, words: str) -> None:
    until = time.monotonic() + 30
    while words not in server.logs(job_id):
        assert time.monotonic() < until, server.logs(job_id)
        time.sleep(0.1)


def spoken(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.startswith("line ")]


def results_of(store: Path) -> dict[str, Any]:
    """Metrics and files of every step of the only run of a store."""
    opened = Store.open(str(store))
    (run,) = all_runs(opened)
    return {
        step.step.key: (
            step.step.metrics, {name: file["sha256"] for name, file in step.step.manifest["files"].items()}
        )
        for step in finished_steps(opened, run.id)
    }  # fmt: skip


def first_word(process: subprocess.Popen[str]) -> str:
    """The name of the job that a process submits."""
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("submitted "), line
    return line.split()[1]


@contextmanager
def submitting(tree: Path, words: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that submits and follows."""
    process = subprocess.Popen(
        [sys.executable, "-m", "workflows.command.cli", "submit", "--tree", str(tree), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Line:
    """A line to a port of this machine that can be cut, connections and all, and mended."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._is_cut, self._is_busy = False, threading.Event()
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, seconds: float) -> None:
        """Cuts it for a while, in the middle of an answer."""
        self._is_busy.clear()
        self._is_busy.wait(10)
        self._is_cut = True
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        time.sleep(seconds)
        self._is_cut = False

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                if self._is_cut:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._target))
                self._ends += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(300):  # small pieces, so that an answer is cut in the middle
                sink.sendall(data)
                self._is_busy.set()
                time.sleep(0.002)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def is_talker(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        words = process.cmdline()
        return words[1:3] == ["-m", "workflows.command.cli"] and words[3] == "run" and "/shared/store" in words
    return False
