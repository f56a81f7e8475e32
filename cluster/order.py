"""What a driver and its workers say to each other: orders, outcomes, and the request to save and leave."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from cluster.ledger import Damaged
from cluster.placement import Machine, Needs
from cluster.step import Runnable
from cluster.store import Store

STATE = "progress.state"
"""The file of a shorter step from which a longer one may go on."""


@dataclass(frozen=True)
class Terms:
    """The times that a lease lives by, in seconds."""

    beat: float = 1.0
    """Between two signs of life."""
    ttl: float = 15.0
    """Without a sign of life after which a holder is passed over."""
    checkpoint: float = 10.0
    """Between two checkpoints of a running step: the most that a killed worker loses."""
    farewell: float = 10.0
    """Given to running steps to save their state when the driver stops."""

    @classmethod
    def on(cls, store: Store, checkpoint: float) -> Terms:
        """Those of a run on a store: where every request is paid for, a heart beats less often.

        Args:
            store: that keeps the leases.
            checkpoint: seconds between two checkpoints.
        """
        return cls(beat=3.0 if store.is_remote else 1.0, checkpoint=checkpoint)


@dataclass(frozen=True)
class Order:
    """One attempt at one step, as the driver asks for it."""

    key: str
    task: Runnable
    inputs: Mapping[str, str]
    store: str
    driver: str
    attempt: str
    over: int
    terms: Terms
    prefix: str | None = None
    """The key of a shorter step of the same work, whose file `STATE` is as good as a checkpoint of this one."""
    needs: Needs = field(default_factory=Needs)
    """What it is given of a node."""


@dataclass(frozen=True)
class Outcome:
    """What became of an attempt: small, since it travels through Ray."""

    state: Literal["published", "busy", "fenced", "stopped", "damaged", "failed", "unplaced", "outgrown"]
    """The last two are of attempts that never started: no node can run them, or they are to be asked for anew."""
    cause: str = ""
    message: str = ""
    log: str = ""
    damaged: Damaged | None = None


class Executor(Protocol):
    """Something that runs one attempt somewhere; the engine knows no more of Ray than this."""

    def submit(self, order: Order) -> Any:
        """Starts an attempt; the result is for `outcome` and `kill`."""
        ...

    async def outcome(self, running: Any) -> Outcome:
        """Waits for an attempt; a worker's death is an outcome too.

        Raises:
            ClusterUnreachable: nothing can run any more.
        """
        ...

    def kill(self, running: Any) -> None:
        """Ends an attempt at once."""
        ...

    def draining(self) -> Collection[str]:
        """The names of the nodes that will be gone before long, and take no new attempts."""
        ...

    def machines(self) -> Sequence[Machine]:
        """The nodes that take new attempts; none until the executor has seen any."""
        ...


EVERYBODY = "*"


def ask_to_leave(store: Store, driver: str, attempts: Iterable[str]) -> None:
    """Asks attempts of a driver, or all with `EVERYBODY`, to save their state and leave."""
    store.put(_leave_path(driver), " ".join(sorted(attempts)).encode())


def forget_leaving(store: Store, driver: str) -> None:
    """Removes what `ask_to_leave` wrote."""
    store.delete([_leave_path(driver)])


def is_asked_to_leave(store: Store, order: Order) -> bool:
    """Whether this attempt was asked to leave, alone or with all of its driver's."""
    asked = (store.get(_leave_path(order.driver)) or b"").decode().split()
    return EVERYBODY in asked or order.attempt in asked


def _leave_path(driver: str) -> str:
    return f"drivers/{driver}/stop"
