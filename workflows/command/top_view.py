"""What `top` shows: the runs that are at work, read from the store alone, so that any terminal will do."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from cluster.flow import Handle
from cluster.overview import Overview
from cluster.standing import MAY_LIVE, SILENCE, Running, RunNow
from cluster.step import Recorded
from cluster.store import Store, StoreError
from workflows.command.forecast import Forecast, in_words
from workflows.command.standing_view import Row, driver_line, running_table
from workflows.command.terminal import table

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
    running = {step.key: (step.seconds, step.progress.part) for step in run.running if step.seconds is not None}
    return forecast.seconds(running)


def _run_parts(run: RunNow, store_url: str) -> Iterator[RenderableType]:
    yield Text(_line(run))
    if run.driver is None or run.driver_state is None:
        yield Text("not started yet")
    else:
        yield driver_line(run.id, store_url, run.driver, run.driver_state, run.driver_silent)
    if run.per_minute:
        speed = f", {run.sample_steps:,.0f} sample-steps a second" if run.sample_steps else ""
        yield Text(f"{run.per_minute:.3g} steps a minute{speed}, over the last minutes")
    if run.nodes:
        nodes = table("node", "host", "running", "last beat")
        for node in run.nodes:
            nodes.add_row(node.node[:DIGITS] or "-", Text(node.host), str(node.running), _ago(node.silent))
        yield nodes
    for why, count in run.unplaced.items():
        yield Text(f"{count} cannot be placed: {why}", "yellow")
    if run.running:
        yield running_table(map(_row, run.running[:SHOWN]), "attempt", "node")
        if len(run.running) > SHOWN:
            yield Text(f"and {len(run.running) - SHOWN} more")
    if run.troubles:
        failures = table("failures", "retried", "failed", "the last")
        for cause, trouble in run.troubles.items():
            failures.add_row(cause, str(trouble.retried), str(trouble.failed), Text(trouble.message))
        yield failures


def _line(run: RunNow) -> str:
    parts = [f"run {run.id}: {run.done} of {len(run.steps)} steps done"]
    counts = {"of them found": run.found, "running": len(run.running), "queued": run.queued, "failed": run.failed}
    parts += [f"{number} {state}" for state, number in counts.items() if number]
    if run.driver_state in MAY_LIVE:
        parts.append(in_words(seconds_left(run)))
    return ", ".join(parts)


def _row(step: Running) -> Row:
    name = (step.node[:DIGITS] or step.host) + (f" and {len(step.beside)} more" if step.beside else "")
    took = Text("" if step.seconds is None else f"{step.seconds:.0f} s")
    late = Text(f"silent for {step.silent:.0f} s", "red")
    time_ = late if step.silent > SILENCE else took
    return Row(step.kind, step.at, step.progress, time_, (str(step.attempt), name))


def _ago(seconds: float) -> Text:
    return Text(f"{seconds:.0f} s ago", "red" if seconds > SILENCE else "")


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
