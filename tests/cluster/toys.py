"""Small tasks that need no torch: they count, wait, fail and die on demand."""

from __future__ import annotations

import builtins
import os
import signal
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.store import StoreError


def note(trace: str, line: str) -> None:
    """Appends a line to a file that all processes share."""
    if trace:
        with Path(trace).open("a") as file:
            file.write(line + "\n")


@dataclass
class Toy:
    threads: int = field(default=1, kw_only=True)
    gpus: float = field(default=0, kw_only=True)

    @property
    def kind(self) -> str:
        return type(self).__name__.lower()

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}


@dataclass
class Made:
    metrics: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Add(Toy):
    """Adds a number to the sum of its inputs; notes in a file outside that it was computed."""

    number: int
    trace: str = ""
    pause: float = 0.0

    def run(self, context: Any, **inputs: Any) -> Made:
        note(self.trace, f"{self.kind} {self.number}")
        time.sleep(self.pause)
        total = self.number + sum(int(step.read("sum.txt")) for step in inputs.values())
        return Made({"sum": total}, {"sum.txt": str(total).encode()})


@dataclass
class Count(Toy):
    """Counts to `end` with a pause at each number, saving where it is; notes each number in a file outside."""

    end: int
    pause: float
    trace: str = ""

    def run(self, context: Any, **inputs: Any) -> Made:
        state = context.saved()
        first = int(state) if state else 0
        for number in range(first, self.end):
            note(self.trace, f"{os.getpid()} {number}")
            time.sleep(self.pause)
            context.progress(number + 1, self.end)
            if context.should_save():
                context.save(str(number + 1).encode())
        return Made({"count": self.end}, {"sum.txt": str(self.end).encode()})


@dataclass
class Fail(Toy):
    """Raises."""

    message: str
    error: str = "ValueError"
    trace: str = ""

    def run(self, context: Any, **inputs: Any) -> Made:
        note(self.trace, "fail")
        errors: dict[str, type[BaseException]] = {**vars(builtins), "StoreError": StoreError}
        raise errors[self.error](self.message)


@dataclass
class Unwritable(Toy):
    """Reports a metric that no manifest can hold."""

    def run(self, context: Any, **inputs: Any) -> Made:
        return Made({"what": object()})


@dataclass
class Wait(Toy):
    """Waits for a file and never asks whether to save."""

    flag: str
    started: str = ""

    def run(self, context: Any, **inputs: Any) -> Made:
        note(self.started, str(os.getpid()))
        while not Path(self.flag).exists():
            time.sleep(0.01)
        return Made({"waited": True}, {"sum.txt": b"1"})


@dataclass
class DieOften(Toy):
    """Kills its own process `times` times, each time after a checkpoint if it `saves`."""

    times: int
    saves: bool
    trace: str

    def run(self, context: Any, **inputs: Any) -> Made:
        note(self.trace, "try")
        state = int(context.saved() or b"0")
        if self.saves and state < self.times:
            context.save(str(state + 1).encode())
            time.sleep(0.3)  # until a beat has told of it
        if len(Path(self.trace).read_text().splitlines()) <= self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        return Made({"state": state})


@dataclass
class DieOnce(Toy):
    """Kills its own process the first time."""

    flag: str

    def run(self, context: Any, **inputs: Any) -> Made:
        if not Path(self.flag).exists():
            Path(self.flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Made({"alive": True})


@dataclass
class Freeze(Toy):
    """Stops its own process, heart and all, the first time."""

    flag: str

    def run(self, context: Any, **inputs: Any) -> Made:
        if not Path(self.flag).exists():
            Path(self.flag).touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return Made({"alive": True})
