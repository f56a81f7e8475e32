"""What went wrong, in the few classes that call for different answers."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.store import StoreError

Cause = Literal["user", "oom", "node", "preempted", "partition", "store"]

BUDGET: dict[Cause, int] = {"user": 0, "oom": 1, "node": 5, "preempted": 20, "partition": 5, "store": 3}
"""How often a step is tried again per cause; an attempt that saved a checkpoint wins the budget back."""

INFRASTRUCTURE: frozenset[Cause] = frozenset({"node", "partition", "store"})
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


class StepFailed(RuntimeError):
    """A step that will not be tried again."""

    def __init__(self, key: str, what: str, cause: Cause, message: str, log: str = "") -> None:
        super().__init__(f"{what} failed ({cause}): {message}")
        self.key = key
        self.what = what
        self.cause = cause
        self.message = message
        self.log = log
        """Path in the store of the attempt's traceback, if it left one."""

    def __reduce__(self) -> Any:
        return (type(self), (self.key, self.what, self.cause, self.message, self.log))


@dataclass
class Budget:
    """What is left of the retries of one step."""

    left: dict[Cause, int] = field(default_factory=lambda: dict(BUDGET))
    starved: int = 0
    """Attempts that ran out of memory: the next is given more."""

    def spend(self, cause: Cause, made_progress: bool) -> bool:
        """Whether the step may be tried again after this failure."""
        if made_progress and cause != "user":
            self.left = dict(BUDGET)
        self.left[cause] -= 1
        self.starved += cause == "oom"
        return self.left[cause] >= 0


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or else what kind of error it is."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def cause_of(error: BaseException) -> Cause:
    """The class of an error raised by a task, or by the store underneath it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "oom"
    if isinstance(error, StoreError) or (isinstance(error, OSError) and error.errno in NO_SPACE):
        return "store"
    if isinstance(error, KeyboardInterrupt):
        return "preempted"
    if isinstance(error, ConnectionError):  # of several processes of one step another is gone
        return "node"
    return "user"
