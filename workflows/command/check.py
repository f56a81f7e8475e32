"""One thing that `doctor` looked at, and how it is shown."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

GIGABYTE = 1e9
MEMORY_A_CPU = 1.0
"""Gigabytes that a worker with PyTorch and a small data set takes."""
ROOM = 5.0
"""Gigabytes on disk below which a longer run may end for want of room."""
SKEW = 60.0
"""Seconds between the clocks; object stores refuse requests at some minutes, and `gc` judges ages by theirs."""
TWO_WINNERS = "of two writers of one object both were told that they won"
UNCONDITIONAL = "use a store that honours If-None-Match: without it two drivers may overwrite each other's steps"
"""What is wrong with a store that ignores the condition of a write, and what to do about it."""

NAME = 20
"""Columns of a check's name on a line of its own."""
COLOURS = {"ok": "green", "warn": "yellow", "wrong": "bold red"}

State = Literal["ok", "warn", "wrong"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: State
    found: str
    advice: str = ""
    """What to do; empty when all is well."""

    def record(self) -> dict[str, str]:
        """As JSON."""
        return asdict(self)


def check_line(check: Check) -> Text:
    """One check for the terminal, as soon as it is known."""
    advice = f"\n{'':{NAME}}-> {check.advice}" if check.advice else ""
    return Text.assemble(f"{check.name:<{NAME}}", (f"{check.state:<6}", COLOURS[check.state]), check.found, advice)


def checks_table(checks: list[Check]) -> Table:
    """The checks for the terminal."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found, and what to do", overflow="fold")
    for check in checks:
        said = Text(check.found)
        if check.advice:
            said.append(f"\n-> {check.advice}")
        table.add_row(check.name, Text(check.state, COLOURS[check.state]), said)
    return table
