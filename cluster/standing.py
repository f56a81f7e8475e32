"""What is said of running work at one look: steps, nodes, drivers, troubles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cluster.owner import Owner
from cluster.runs import BEAT_SECONDS

SILENCE = 4 * BEAT_SECONDS
"""Seconds without news after which a driver, and without a beat after which a step, is called silent."""

DriverState = Literal["at work", "silent", "gone", "ended"]


@dataclass(frozen=True)
class Running:
    """A step whose lease is held."""

    key: str
    kind: str
    at: Mapping[str, Any]
    attempt: int
    """Which holder of its lease this is, from 1."""
    node: str
    """Ray's name of the node; empty for what a driver does itself."""
    beside: Sequence[str]
    """The other nodes that it lives on."""
    host: str
    progress: tuple[int, int, str]
    """Done, total and a note; the total is 0 before anything is known."""
    seconds: float | None
    """Since its holder began, by the holder's clock and this one's."""
    silent: float
    """Seconds since its last beat, by the store's clock."""


@dataclass(frozen=True)
class NodeNow:
    """A node that holds leases, or held some when it was looked at before."""

    node: str
    host: str
    running: int
    silent: float
    """Seconds since the last beat of any of its steps."""


@dataclass
class Trouble:
    """What went wrong in one class of failures."""

    retried: int = 0
    """Attempts that were followed by another."""
    failed: int = 0
    """Steps that stand failed."""
    message: str = ""
    """The newest."""


@dataclass
class DriverNow:
    """A process that drives the run, by what it wrote."""

    id: str
    owner: Owner | None = None
    cpus: float = 0.0
    """Of the cluster that it found; 0 where that is not known."""
    gpus: float = 0.0
    ended: bool = False
    news: float = 0.0
    """When it wrote last, by the store's clock."""

    def state(self, now: float) -> DriverState:
        """How it seems from here.

        Args:
            now: the time by the store's clock.
        """
        if self.ended:
            return "ended"
        if self.owner is not None and self.owner.is_gone():
            return "gone"
        return "silent" if now - self.news > SILENCE else "at work"


@dataclass
class StepNow:
    """A step that the run named, and the last that was heard of it."""

    key: str
    kind: str
    at: Mapping[str, Any]
    inputs: Sequence[str] = ()
    threads: int = 1
    """Of all its processes."""
    state: str = "planned"
    """planned, or the engine's last word: found, waiting, started, unplaced, retried, recomputed, published, failed."""
    driver: str = ""
    """Whose word that was."""
    cause: str = ""
    message: str = ""
    fence: int = 1
    """Of its newest lease that is known."""


@dataclass(frozen=True)
class RunNow:
    """A run at one look."""

    id: str
    driver: DriverNow | None
    """The newest that is at work, or else the newest; None before the first."""
    driver_state: DriverState | None
    driver_silent: float
    """Seconds since that driver wrote."""
    steps: Mapping[str, StepNow] = field(repr=False)
    running: list[Running]
    nodes: list[NodeNow]
    done: int
    found: int
    """Of those that are done, the ones that this driver found finished."""
    failed: int
    queued: int
    """Handed to Ray, and not begun."""
    unplaced: Mapping[str, int]
    """Why no node can run a step, and how many wait for that."""
    troubles: Mapping[str, Trouble]
    per_minute: float
    """Steps published a minute, over the last minutes."""
    sample_steps: float
    """Training examples passed forwards and backwards a second, by the steps published in the last minutes."""
    typical: Mapping[str, float]
    """Mean seconds of a step, by kind."""

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "run": self.id,
            "driver": self.driver_state,
            "driver_silent_seconds": round(self.driver_silent, 1),
            "host": host_of(self.driver.owner) if self.driver and self.driver.owner else "",
            "steps_total": len(self.steps),
            "steps_done": self.done,
            "steps_found": self.found,
            "steps_failed": self.failed,
            "steps_queued": self.queued,
            "steps_running": len(self.running),
            "unplaced": dict(self.unplaced),
            "steps_per_minute": round(self.per_minute, 2),
            "sample_steps_per_second": round(self.sample_steps, 1),
            "nodes": [asdict(node) for node in self.nodes],
            "running": [asdict(step) for step in self.running],
            "failures": {cause: asdict(trouble) for cause, trouble in self.troubles.items()},
        }


def host_of(owner: Owner) -> str:
    """The name of the machine that a process runs on."""
    return owner.host.split("/")[0]
