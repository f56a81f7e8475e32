"""Signals that come while nobody listens for them yet."""

from __future__ import annotations

import os
import signal

import pytest
import typer

from workflows.command.signals import stoppable


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_what_a_signal_cuts_short_does_not_end_in_a_traceback(number: signal.Signals, code: int) -> None:
    def import_something() -> None:
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt as interrupt:
            raise ValueError("half of a module was imported") from interrupt  # as libraries do

    said: list[str] = []
    with pytest.raises(typer.Exit) as end, stoppable(said.append):
        import_something()
    assert end.value.exit_code == code
    assert said[0].startswith("to go on: hedgerow")


def test_an_error_that_no_signal_has_caused_is_left_alone() -> None:
    with pytest.raises(ValueError, match="no signal"), stoppable(lambda line: None):
        raise ValueError("no signal")
