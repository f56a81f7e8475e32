"""Small tasks that need no torch: they count, wait, fail and die on demand."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


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
    """Adds a number to the sum of its inputs."""

    number: int

    def run(self, context: Any, **inputs: Any) -> Made:
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
            if self.trace:
                with Path(self.trace).open("a") as trace:
                    trace.write(f"{os.getpid()} {number}\n")
            time.sleep(self.pause)
            context.progress(number + 1, self.end)
            if context.should_save():
                context.save(str(number + 1).encode())
        return Made({"count": self.end}, {"sum.txt": str(self.end).encode()})


@dataclass
class Fail(Toy):
    """Raises."""

    message: str

    def run(self, context: Any, **inputs: Any) -> Made:
        raise ValueError(self.message)


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
