"""What `top` shows: the runs that are at work, read from the store alone, so that any terminal will do."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cluster.flow import Handle, describe
from cluster.overview import Overview
from cluster.standing import SILENCE, Running, RunNow, host_of
from cluster.step import Recorded
from cluster.store import Store, StoreError
from workflows.command.forecast import Forecast, in_words

LOOK_SECONDS = 1.5
"""Between two looks; longer where a look itself takes long."""
SHOWN = 20
"""Running steps of a run that fit on a screen."""
DIGITS = 8
"""Of a node's name."""
NOTHING = "no run is at work here; `hedgerow runs` lists all of them"


def top_records(runs: Sequence[RunNow]) -> list[dict[str, Any]]:
    """The runs as JSON."""
    return [{**run.record(), "seconds_left": _rounded(seconds_left(run))} for run in runs]


def top_view(runs: Sequence[RunNow], store_url: str) -> Group:
    """The runs for the terminal.

    Args:
        runs: at one look.
        store_url: for the command that goes on with a run.
    """
    if not runs:
        return Group(Text(NOTHING))
    return Group(*(part for run in runs for part in _run_parts(run, store_url)))


def watch(store: Store, overview: Overview, console: Console) -> None:
    """Shows the runs until `q` or Ctrl-C; a store that does not answer for a while is only told of.

    Args:
        store: that the overview reads.
        overview: what to look at.
        console: a terminal.
    """
    view: RenderableType = Text("looking")
    trouble: list[Text] = []
    with _keys() as pressed, Live(console=console, get_renderable=lambda: Group(view, *trouble)) as live:
        pause = 0.0
        while not pressed(pause):
            began = time.monotonic()
            try:
                view, trouble = top_view(overview.look(), store.url), []
            except StoreError as error:
                trouble = [Text(f"the store does not answer: {error}", "red")]
            live.refresh()
            pause = max(LOOK_SECONDS, 2 * (time.monotonic() - began))


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Waits for so many seconds, and says whether somebody wants to leave."""
    if not sys.stdin.isatty():
        yield _slept
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)

    def pressed(seconds: float) -> bool:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        typed = os.read(sys.stdin.fileno(), 64) if ready else b" "
        return not typed or b"q" in typed.lower()

    try:
        yield pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _slept(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def seconds_left(run: RunNow) -> float | None:
    """The time that is left if every step takes as long as those of its kind did; None where nothing is known."""
    handles: dict[str, Handle] = {}
    for step in run.steps.values():
        if step.state not in ("found", "published", "failed"):
            inputs = {key: handles[key] for key in step.inputs if key in handles}
            handles[step.key] = Handle(Recorded({"kind": step.kind}, step.threads), inputs, step.at, step.key)
    seen = sum(handles[step.key].task.threads for step in run.running if step.key in handles)
    cpus, gpus = (run.driver.cpus, run.driver.gpus) if run.driver else (0.0, 0.0)
    forecast = Forecast(handles.values(), cpus or seen, gpus)
    for kind, seconds in run.typical.items():
        forecast.end(Handle(Recorded({"kind": kind}), {}, {}, f"one of {kind}"), seconds)
    return forecast.seconds({step.key: (step.seconds, _part(step)) for step in run.running if step.seconds is not None})


def _run_parts(run: RunNow, store_url: str) -> Iterator[RenderableType]:
    yield Text(_line(run))
    yield _driver_line(run, store_url)
    if run.per_minute:
        speed = f", {run.sample_steps:,.0f} sample-steps a second" if run.sample_steps else ""
        yield Text(f"{run.per_minute:.3g} steps a minute{speed}, over the last minutes")
    if run.nodes:
        table = _table("node", "host", "running", "last beat")
        for node in run.nodes:
            table.add_row(node.node[:DIGITS] or "-", Text(node.host), str(node.running), _ago(node.silent))
        yield table
    for why, count in run.unplaced.items():
        yield Text(f"{count} cannot be placed: {why}", "yellow")
    if run.running:
        yield _running_table(run.running[:SHOWN])
        if len(run.running) > SHOWN:
            yield Text(f"and {len(run.running) - SHOWN} more")
    if run.troubles:
        table = _table("failures", "retried", "failed", "the last")
        for cause, trouble in run.troubles.items():
            table.add_row(cause, str(trouble.retried), str(trouble.failed), Text(trouble.message))
        yield table


def _line(run: RunNow) -> str:
    parts = [f"run {run.id}: {run.done} of {len(run.steps)} steps done"]
    counts = {"of them found": run.found, "running": len(run.running), "queued": run.queued, "failed": run.failed}
    parts += [f"{number} {state}" for state, number in counts.items() if number]
    if run.driver_state in ("at work", "silent"):
        parts.append(in_words(seconds_left(run)))
    return ", ".join(parts)


def _driver_line(run: RunNow, store_url: str) -> Text:
    """How the driver is, and what to do where it is not."""
    if run.driver is None:
        return Text("not started yet")
    where = f" on {host_of(run.driver.owner)}" if run.driver.owner else ""
    go_on = f"to go on: hedgerow resume {run.id} --store {shlex.quote(store_url)}"
    said = {
        "at work": Text(f"driver{where} is at work", "green"),
        "ended": Text(f"driver{where} has ended"),
        "silent": Text(
            f"driver{where} has been silent for {run.driver_silent:.0f} s; if it is dead, {go_on}", "yellow"
        ),
        "gone": Text(f"driver{where} is dead: its process is gone; {go_on}", "bold red"),
    }
    return said[run.driver_state or "ended"]


def _running_table(steps: Sequence[Running]) -> Table:
    table = _table("step", "where", "progress", "", "attempt", "node", "time")
    for step in steps:
        done, total, note = step.progress
        bar = ProgressBar(total=1.0, completed=_part(step), width=16)
        name = (step.node[:DIGITS] or step.host) + (f" and {len(step.beside)} more" if step.beside else "")
        took = "" if step.seconds is None else f"{step.seconds:.0f} s"
        late = step.silent > SILENCE
        table.add_row(
            step.kind,
            Text(describe(step.at)),
            bar,
            Text(note or (f"{done}/{total}" if total else "")),
            str(step.attempt),
            Text(name),
            Text(f"silent for {step.silent:.0f} s" if late else took, "red" if late else ""),
        )
    return table


def _part(step: Running) -> float:
    done, total, _ = step.progress
    return done / total if total else 0.0


def _ago(seconds: float) -> Text:
    return Text(f"{seconds:.0f} s ago", "red" if seconds > SILENCE else "")


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
