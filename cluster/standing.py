"""How running work seems from outside, at one look: whether a process lives, and what is said of steps and drivers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cluster.ledger import Lease, Ledger, Progress
from cluster.owner import Owner
from cluster.runs import BEAT_SECONDS, Chunk, beats_of
from cluster.store import Store

SILENCE = 4 * BEAT_SECONDS
"""Seconds without a sign of life after which a driver, or the holder of a lease, is called silent."""
LINGER = 3600.0
"""Seconds without a sign of life after which it is taken for dead, wherever it is."""

Seems = Literal["at work", "silent", "waiting", "gone", "ended"]
"""Waiting is a driver that has lost its cluster, and goes on when one answers."""
MAY_LIVE: tuple[Seems, ...] = ("at work", "silent")
"""What may hold steps; a driver that waits holds none."""
RunState = Literal["running", "silent", "waiting", "failed", "finished", "stopped"]


def seems(ended: bool, owner: Owner | None, silent: float, linger: float = LINGER) -> Seems:
    """How a process seems from outside; every command judges drivers and holders of leases by this.

    Args:
        ended: whether it said that it ended.
        owner: the process, where it is known: of one on this machine it can be told whether it runs.
        silent: seconds since its last sign of life.
        linger: seconds of silence after which it is taken for dead.
    """
    if ended:
        return "ended"
    if silent >= linger or (owner is not None and owner.is_gone()):
        return "gone"
    return "silent" if silent > SILENCE else "at work"


def holder(ledger: Ledger, lease: Lease, now: float, linger: float = LINGER) -> tuple[Seems, float]:
    """How the holder of a lease seems, and the seconds since its last beat.

    Args:
        ledger: that keeps the lease.
        lease: as it was read.
        now: the time by the store's clock.
        linger: seconds of silence after which the holder is taken for dead.
    """
    beaten = ledger.beaten(lease) if lease.record["state"] == "held" else None
    silent = 0.0 if beaten is None else max(0.0, now - beaten)
    return seems(beaten is None, lease.owner, silent, linger), silent


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
    progress: Progress
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
    waits: float = 0.0
    """Seconds after its end for which it waits for the cluster that it lost."""
    news: float = 0.0
    """When it wrote last, by the store's clock."""

    def hear(self, event: Mapping[str, Any]) -> None:
        """Takes in that it began, or that it ended."""
        self.ended = event["state"] == "ended"
        self.waits = event.get("waits", 0.0)
        if not self.ended:
            self.owner = Owner.from_json(event["owner"]) if "owner" in event else None
            self.cpus, self.gpus = event.get("cpus", 0.0), event.get("gpus", 0.0)

    def state(self, now: float, linger: float = LINGER) -> Seems:
        """How it seems from here.

        Args:
            now: the time by the store's clock.
            linger: seconds of silence after which it is taken for dead.
        """
        if self.ended and self.silent(now) < self.waits and not (self.owner and self.owner.is_gone()):
            return "waiting"
        return seems(self.ended, self.owner, self.silent(now), linger)

    def silent(self, now: float) -> float:
        """Seconds since it wrote."""
        return max(0.0, now - self.news)


def drivers_of(store: Store, run_id: str, log: Iterable[Chunk]) -> list[DriverNow]:
    """The drivers of a run; one listing more, unless all of them have ended.

    Args:
        store: with the run.
        run_id: the run.
        log: all that its drivers wrote.
    """
    drivers: dict[str, DriverNow] = {}
    for chunk in log:
        driver = drivers.setdefault(chunk.driver, DriverNow(chunk.driver))
        driver.news = chunk.written
        for event in chunk.events:
            if event["event"] == "run":
                driver.hear(event)
    if not all(driver.ended for driver in drivers.values()):
        for name, beat in beats_of(store, run_id).items():
            driver = drivers.setdefault(name, DriverNow(name))
            driver.news = max(driver.news, beat)
    return list(drivers.values())


def main_driver(drivers: Iterable[DriverNow], now: float) -> DriverNow | None:
    """The newest that is at work, or else the newest: who was lost does not count once another went on.

    Args:
        drivers: of one run.
        now: the time by the store's clock.

    Returns:
        the driver; None before the first.
    """
    return max(drivers, key=lambda driver: (driver.state(now) == "at work", driver.news), default=None)


def run_state(driver: Seems | None, steps: Collection[str]) -> RunState:
    """How a run stands.

    Args:
        driver: how its main driver seems; None before the first.
        steps: the state of each of its steps, of which `running`, `failed` and `stored` say something of the run.
    """
    if driver == "at work" or "running" in steps:
        return "running"
    if driver == "silent" or driver == "waiting":
        return driver
    if "failed" in steps:
        return "failed"
    return "finished" if set(steps) <= {"stored"} else "stopped"


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
    """planned, or the engine's last word on it: found, waiting (another process holds its lease), started, unplaced,
    retried, recomputed, published, failed. That the store does not answer (held-up) is no word on the step."""
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
    """Its main driver; None before the first."""
    driver_state: Seems | None
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
            "host": self.driver.owner.machine if self.driver and self.driver.owner else "",
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
