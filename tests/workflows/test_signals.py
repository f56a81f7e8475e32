"""Signals that come while nobody listens for them yet."""

from __future__ import annotations

import os
import signal

import pytest
import typer

from cluster.settings import SUBMITTED
from workflows.command.signals import stoppable, way_on


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


def test_a_submitted_job_does_not_name_a_command_for_the_cluster_to_those_who_submitted_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(SUBMITTED, raising=False)
    assert way_on("hedgerow resume r") == "to go on: hedgerow resume r"
    monkeypatch.setenv(SUBMITTED, "1")
    assert way_on("hedgerow resume r --address auto") == "to go on: submit it again"


def test_an_error_that_no_signal_has_caused_is_left_alone() -> None:
    with pytest.raises(ValueError, match="no signal"), stoppable(lambda line: None):
        raise ValueError("no signal")
