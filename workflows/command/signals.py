"""Signals that end a command: one line that says how to go on, and a code."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from cluster.settings import SUBMITTED
from workflows.command.exit_codes import Exit

STOPS = (signal.SIGINT, signal.SIGTERM)


def way_on(command: str) -> str:
    """The line that says how to go on; where a submitted job runs, nobody types anything.

    Args:
        command: that goes on.
    """
    return "to go on: submit it again" if SUBMITTED in os.environ else f"to go on: {command}"


def run_with_signals(main: Coroutine[Any, Any, Exit]) -> Exit:
    """Like `asyncio.run`, for a coroutine that handles signals: the handlers that were there before come back.

    Args:
        main: ends with the code of a command.
    """
    before = {name: signal.getsignal(name) for name in STOPS}
    try:
        return asyncio.run(main)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@contextmanager
def stoppable(say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Ctrl-C and SIGTERM end a run with one line and a code, also before its first step and after its last.

    Args:
        say: takes the line.

    Yields:
        what to call where a signal may have been lost: Ray swallows exceptions here and there while it starts.
    """
    asked: list[int] = []

    def stop(number: int, frame: Any) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    def stop_if_asked() -> None:
        if asked:
            raise KeyboardInterrupt

    before = {name: signal.signal(name, stop) for name in STOPS}
    try:
        yield stop_if_asked
    except BaseException as end:
        if isinstance(end, SystemExit) and end.code == signal.SIGTERM:  # what Ray makes of it while it starts
            asked.append(signal.SIGTERM)
        elif not asked and not isinstance(end, KeyboardInterrupt):  # once asked, whatever was cut short may complain
            raise
        say(way_on(shlex.join(["hedgerow", *sys.argv[1:]])))
        raise typer.Exit(Exit.PREEMPTED if signal.SIGTERM in asked else Exit.INTERRUPTED) from None
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
