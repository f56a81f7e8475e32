"""How a command ends, for scripts and schedulers."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of `hedgerow`."""

    DONE = 0
    FAILED = 1
    """A step failed, or the workflow could not go on from what the steps found."""
    WRONG = 2
    """The request was wrong; nothing was started."""
    INFRASTRUCTURE = 3
    PREEMPTED = 75
    """Run me again."""
    INTERRUPTED = 130
