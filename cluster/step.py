"""A step: a task and the steps that feed it, named by what it computes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class Runnable(Protocol):
    """What the cluster needs of a task; it looks at nothing else."""

    @property
    def kind(self) -> str:
        """The task's name."""
        ...

    @property
    def threads(self) -> int:
        """CPU threads that it uses; none for what the driver does itself, in a moment."""
        ...

    @property
    def gpus(self) -> float:
        """GPUs, or a fraction of one, that it needs."""
        ...

    def identity(self) -> dict[str, Any]:
        """What it computes, as JSON: nothing of when, where or for whom."""
        ...

    def run(self, context: Any, **inputs: Any) -> Any:
        """Computes; the result has `metrics` and `files`, and may name steps that it rests on as `sources`."""
        ...


@dataclass(frozen=True)
class Recorded:
    """The task of a step that is known by its manifest: enough to name it, not to compute it again.

    Args:
        record: the task's identity, as its manifest keeps it.
    """

    record: Mapping[str, Any]
    threads: int = 1
    gpus: float = 0.0

    @property
    def kind(self) -> str:
        """The task's name."""
        return str(self.record["kind"])

    def identity(self) -> dict[str, Any]:
        """What it computed."""
        return dict(self.record)

    def run(self, context: Any, **inputs: Any) -> Any:
        """Cannot happen: the engine asks for no attempt at such a step.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(f"the {self.kind} of a stored step cannot be computed again from its manifest")


def processes_of(task: Runnable) -> int:
    """How many processes compute a task together, each with its threads and GPUs: its `world_size`, if it has one."""
    return int(getattr(task, "world_size", 1))


def key_of(identity: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The SHA-256 that names a step: its task's identity and the keys of its inputs."""
    record = {"task": identity, "inputs": dict(inputs)}
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
