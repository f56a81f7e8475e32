"""What `show`, `top` and a run itself print alike of running work: how its driver is, and its steps."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cluster.flow import describe
from cluster.ledger import Progress
from cluster.standing import LINGER, DriverNow, Seems
from workflows.command.terminal import table

BAR = 16
"""Columns of a bar."""


def driver_line(run_id: str, store_url: str, driver: DriverNow, state: Seems, silent: float) -> Text:
    """How the main driver of a run is, and what to do where it is not.

    Args:
        run_id: the run.
        store_url: for the command that goes on with it.
        driver: of the run.
        state: how it seems.
        silent: seconds since it wrote.
    """
    name = f"driver on {driver.owner.machine}" if driver.owner else "driver"
    go_on = f"to go on: hedgerow resume {run_id} --store {shlex.quote(store_url)}"
    if state == "at work":
        return Text(f"{name} is at work", "green")
    if state == "ended":
        return Text(f"{name} has ended")
    if state == "waiting":
        patience = f"lost {silent:.0f} s ago (up to {driver.waits / 60:g} minutes)"
        return Text(f"{name} waits for its cluster, {patience}; it goes on by itself when one answers", "yellow")
    if state == "silent":
        return Text(f"{name} has been silent for {silent:.0f} s; if it is dead, {go_on}", "yellow")
    if silent >= LINGER:
        return Text(f"{name} is taken for dead: nothing was heard of it for over an hour; {go_on}", "bold red")
    return Text(f"{name} is dead: its process is gone; {go_on}", "bold red")


@dataclass(frozen=True)
class Row:
    """A running step in a table."""

    kind: str
    at: Mapping[str, Any]
    progress: Progress
    time: Text
    """How long it has run, or what is wrong with that."""
    more: tuple[str, ...] = ()
    """What stands in the further columns."""


def running_table(rows: Iterable[Row], *more: str) -> Table:
    """Running steps, with how far each has come.

    Args:
        rows: the steps.
        more: names of further columns.
    """
    made = table("step", "where", "progress", "", *more, "time")
    for index in (0, 3, -1):  # on a narrow screen the place folds first
        made.columns[index].no_wrap = True
    made.columns[-1].justify = "right"
    for row in rows:
        done, total, note = row.progress
        bar = ProgressBar(total=1.0, completed=row.progress.part, width=BAR)
        words = Text(note or (f"{done}/{total}" if total else ""))
        made.add_row(row.kind, Text(describe(row.at)), bar, words, *map(Text, row.more), row.time)
    return made
