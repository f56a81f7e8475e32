"""The work that faults strike: hash chains that take their time, save where they are, and note every link outside."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.flow import Flow
from tests.cluster.clusters import NODE
from tests.cluster.toys import Made, Toy


@dataclass
class Climb(Toy):
    """Links `end` hashes: one that was skipped, repeated or computed from a wrong state shows in the result."""

    number: int
    end: int
    pause: float = 0.0
    trace: str = ""
    hog: int = 0
    """MB that it fills at its link 5, as a leak would; 0 for none."""

    @property
    def kind(self) -> str:
        return "climb"

    def identity(self) -> dict[str, Any]:
        """Neither how long it takes nor where that is noted is part of what it computes."""
        return {"kind": self.kind, "number": self.number, "end": self.end, "hog": self.hog}

    def run(self, context: Any, **inputs: Any) -> Made:
        state = context.saved()
        saved = json.loads(state) if state else {"at": 0, "link": hashlib.sha256(str(self.number).encode()).hexdigest()}
        at, link = saved["at"], saved["link"]
        self._note(at, "begin")
        filled = []
        while at < self.end:
            time.sleep(self.pause)
            link = hashlib.sha256(f"{link} {at}".encode()).hexdigest()
            self._note(at, "link")
            at += 1
            while at >= 5 and len(filled) < self.hog // 50:
                filled.append(b"\1" * (50 * 2**20))
                time.sleep(0.05)
            context.progress(at, self.end)
            if context.should_save():
                context.save(json.dumps({"at": at, "link": link}).encode())
        self._note(at, "end")
        return Made({"links": at}, {"link.txt": link.encode()})

    def _note(self, at: int, what: str) -> None:
        if not self.trace:
            return
        node = os.environ.get(NODE, "")
        where = {"node": node, "host": socket.gethostname(), "pid": os.getpid()}
        line = {"t": time.monotonic(), **where, "step": self.number, "at": at, "what": what, "clock": time.time()}
        with Path(self.trace).open("a") as file:
            file.write(json.dumps(line) + "\n")


@dataclass
class Tip(Toy):
    """Where all climbs end."""

    def run(self, context: Any, **inputs: Any) -> Made:
        links = "".join(step.read("link.txt").decode() for _, step in sorted(inputs.items()))
        return Made({"tip": hashlib.sha256(links.encode()).hexdigest()}, {"links.txt": links.encode()})


@dataclass(frozen=True)
class Work:
    """Several climbs side by side, and their tip."""

    width: int = 2
    end: int = 60
    pause: float = 0.1
    hog: int = 0
    """MB that the last climb fills; then there is no tip, for that climb fails."""

    async def run(self, flow: Flow, trace: str) -> Any:
        climbs = [
            flow.step(Climb(number, self.end, self.pause, trace, self.hog if number == self.width - 1 else 0))
            for number in range(self.width)
        ]
        if self.hog:
            return await flow.together(*climbs)
        return (await flow.step(Tip(), **{f"x{number:03d}": climb for number, climb in enumerate(climbs)}))["tip"]
