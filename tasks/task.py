"""What a task is, and what it may ask of whoever runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from pydantic import Field

from tasks.component import Component, Placement


class Stored(Protocol):
    """A finished step, as the task that depends on it sees it."""

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The small values that the step reported."""
        ...

    def read(self, name: str) -> bytes:
        """The bytes of one of its files, checked against their digest.

        Raises:
            KeyError: the step has no such file.
        """
        ...


class Context(Protocol):
    """What a running task may ask for; a plain process can offer it as well as a cluster."""

    def saved(self) -> bytes | None:
        """The last state that an earlier attempt of this very step saved, if there is one."""
        ...

    def should_save(self) -> bool:
        """Whether it is time to save: enough time has passed, or the worker was asked to leave."""
        ...

    def save(self, state: bytes) -> None:
        """Keeps `state` for a later attempt; ends the task here if the worker was asked to leave."""
        ...

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Says how far the task is; cheap enough to call at every step."""
        ...


@dataclass
class Result:
    """What a task hands back: small values for people and workflows, files for other tasks.

    Both must be a function of the task's fields and inputs alone: no times, hosts or paths.
    """

    metrics: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


class Task(Component):
    """One unit of work for one worker: the cluster runs it, stores its result and may run it again elsewhere."""

    threads: int = Field(default=1, ge=1)
    """CPU threads. Part of the identity: another number of threads adds floats in another order."""
    gpus: Annotated[float, Placement()] = Field(default=0, ge=0)
    """GPUs, or a fraction of one."""

    def run(self, context: Context, **inputs: Stored) -> Result:
        """Computes the result.

        Raises:
            ValueError: the fields and the inputs do not fit each other; the message is shown to the user as it is.
        """
        raise NotImplementedError


class Alone:
    """A `Context` for running one task by hand: no checkpoints, no progress."""

    def saved(self) -> bytes | None:
        """Nothing."""
        return None

    def should_save(self) -> bool:
        """Never."""
        return False

    def save(self, state: bytes) -> None:
        """Cannot happen.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("nothing keeps checkpoints here")

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Told to nobody."""
