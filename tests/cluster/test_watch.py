"""The driver's watch: nodes that go, before and after an attempt's lease, and a store that is away meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from cluster import placement
from cluster.ledger import Lease, Ledger
from cluster.order import EVERYBODY, Order, Outcome, Terms
from cluster.placement import Machine
from cluster.profiles import Placing
from cluster.store import Store, StoreError
from cluster.watch import Watch
from tests.cluster.driving import Outage
from tests.cluster.toys import Add

TTL = 0.3
KEY = "ab" * 32
STOP = "drivers/d/stop"


class Nodes:
    """An executor whose attempts never say anything, until there is an answer."""

    def __init__(self, *names: str) -> None:
        self.alive = set(names)
        self.going: set[str] = set()
        self.killed: list[Any] = []
        self.answer: Outcome | None = None

    def submit(self, order: Order) -> Any:
        return order.attempt

    async def outcome(self, running: Any) -> Outcome:
        while self.answer is None:
            await asyncio.sleep(0.01)
        return self.answer

    def kill(self, running: Any) -> None:
        self.killed.append(running)

    def draining(self) -> set[str]:
        return self.going

    def machines(self) -> list[Machine]:
        return [Machine({"CPU": 8}, {}, name) for name in sorted(self.alive - self.going)]


class Watched:
    """Attempts at one step, and the watch over them."""

    def __init__(self, store: Store, *nodes: str, ttl: float = TTL) -> None:
        self.store = store
        self.nodes = Nodes(*nodes)
        self.ttl = ttl
        self.watch = Watch(Ledger(store), self.nodes, "d", ttl, Placing(), placement.Nodes(self.nodes.machines), 60.0)

    def begin(self, attempt: str = "d-1", key: str = KEY) -> asyncio.Future[Outcome]:
        order = Order(key, Add(1), {}, self.store.url, "d", attempt, 0, Terms(ttl=self.ttl))
        return asyncio.ensure_future(self.watch.outcome(order, attempt, lambda why: None))

    def asked(self) -> set[str]:
        return set((self.store.get(STOP) or b"").decode().split())


def held(store: Store, attempt: str = "d-1", key: str = KEY, over: int = 0, **about: Any) -> Lease:
    lease = Ledger(Store.open(store.url)).lease(key, attempt, over, {"node": "a", **about})
    assert lease is not None
    return lease


async def beaten(lease: Lease, store: Store, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
    """Shows that a holder lives, for a while, by a way to the store of its own."""
    own, end = Ledger(Store.open(store.url)), time.monotonic() + seconds
    while time.monotonic() < end and not until():
        own.beat(lease)
        await asyncio.sleep(0.02)


# ---- before the lease


@pytest.mark.parametrize("gone", ["a", "joined"])
def test_an_attempt_that_a_node_may_have_taken_along_unheard_is_asked_for_anew(disk: Store, gone: str) -> None:
    made = Watched(disk, "a", "b")

    async def run() -> tuple[Outcome, float]:
        attempt = made.begin()
        await asyncio.sleep(TTL / 2)
        made.nodes.alive.add("joined")
        await asyncio.sleep(TTL / 2)
        assert not attempt.done()
        made.nodes.alive.remove(gone)
        began = time.monotonic()
        return await asyncio.wait_for(attempt, 5), time.monotonic() - began

    outcome, seconds = asyncio.run(run())
    assert outcome.state == "outgrown"
    assert seconds < TTL + 3
    assert made.nodes.killed == ["d-1"]


def test_a_node_that_is_being_drained_is_not_gone_yet(disk: Store) -> None:
    made = Watched(disk, "a", "b")

    async def run() -> Outcome:
        attempt = made.begin()
        await asyncio.sleep(TTL / 2)
        made.nodes.going.add("a")
        await asyncio.sleep(2 * TTL)
        assert not attempt.done()
        made.nodes.going.clear()
        made.nodes.alive.remove("a")
        return await asyncio.wait_for(attempt, 5)

    assert asyncio.run(run()).state == "outgrown"


# ---- asked to leave


def test_who_could_not_be_asked_to_leave_for_the_store_was_away_is_asked_again(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Watched(disk, "a", "b", ttl=2 * TTL)
    lease, put = held(disk), disk.put
    refused: list[str] = []

    def once(path: str, data: bytes) -> None:
        if path == STOP and not refused:
            refused.append(path)
            raise StoreError("away")
        put(path, data)

    async def run() -> None:
        monkeypatch.setattr(disk, "put", once)
        made.nodes.going.add("a")
        attempt = made.begin()
        await beaten(lease, disk, 5, until=lambda: bool(made.asked()))
        attempt.cancel()

    asyncio.run(run())
    assert refused
    assert made.asked() == {"d-1"}


def test_a_node_that_is_drained_while_the_driver_stops_takes_nothing_back(disk: Store) -> None:
    made = Watched(disk, "a", "b")

    async def run() -> None:
        await made.watch.ask_to_leave(EVERYBODY)
        lease = held(disk)
        made.nodes.going.add("a")
        attempt = made.begin()
        await beaten(lease, disk, 5, until=lambda: "d-1" in made.asked())
        attempt.cancel()

    asyncio.run(run())
    assert made.asked() == {EVERYBODY, "d-1"}


def test_several_that_leave_at_once_are_all_asked(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower of two writers must not write what it knew before the other."""
    put = disk.put

    def slow(path: str, data: bytes) -> None:
        time.sleep(0.1 if data == b"d-1" else 0)
        put(path, data)

    async def run() -> None:
        monkeypatch.setattr(disk, "put", slow)
        await asyncio.gather(*(made.watch.ask_to_leave(f"d-{number}") for number in (1, 2, 3)))

    made = Watched(disk)
    asyncio.run(run())
    assert made.asked() == {"d-1", "d-2", "d-3"}


def test_an_attempt_in_several_processes_leaves_when_one_of_their_nodes_does(disk: Store) -> None:
    made = Watched(disk, "a", "b", ttl=2 * TTL)
    lease = held(disk, beside=["b"])

    async def run() -> None:
        made.nodes.going.add("b")
        attempt = made.begin()
        await beaten(lease, disk, 5, until=lambda: bool(made.asked()))
        attempt.cancel()

    asyncio.run(run())
    assert made.asked() == {"d-1"}


# ---- at work


@pytest.mark.parametrize(("state", "ended"), [("done", "published"), ("released", "failed")])
def test_an_end_that_a_frozen_node_keeps_to_itself_is_seen_by_the_lease(disk: Store, state: str, ended: str) -> None:
    watched = Watched(disk, "a", ttl=1.5)

    async def run() -> Outcome:
        attempt = watched.begin()
        Ledger(disk).beat(held(disk), state=state)
        return await asyncio.wait_for(attempt, 1.4)  # and not after a whole ttl of silence

    assert asyncio.run(run()).state == ended
    assert not watched.nodes.killed  # there is nothing to kill


def test_an_attempt_that_has_just_ended_may_still_say_how(disk: Store) -> None:
    """Its lease is given back before its answer has come through Ray, and looks may follow each other at once."""
    made = Watched(disk, "a", ttl=2.0)

    async def run() -> Outcome:
        attempt = made.begin()
        Ledger(disk).beat(held(disk), state="released")
        for _ in range(5):
            made.watch.look_again()
            await asyncio.sleep(0.05)
        made.nodes.answer = Outcome("failed", "user", "no good")
        return await asyncio.wait_for(attempt, 5)

    assert asyncio.run(run()).message == "no good"


def test_an_attempt_that_was_passed_over_is_not_waited_for_whatever_becomes_of_the_other(disk: Store) -> None:
    made = Watched(disk, "a")

    async def run() -> Outcome:
        lease = held(disk)
        attempt = made.begin()
        await beaten(lease, disk, TTL)
        held(disk, "other-1", over=lease.fence)
        return await asyncio.wait_for(attempt, 5)

    assert asyncio.run(run()).state == "fenced"


def test_a_holder_whose_beats_end_is_not_waited_for(disk: Store) -> None:
    made = Watched(disk, "a")

    async def run() -> Outcome:
        lease = held(disk)
        attempt = made.begin()
        await beaten(lease, disk, 1.5 * TTL)
        assert not attempt.done()
        return await asyncio.wait_for(attempt, 5)

    assert asyncio.run(run()).cause == "partition"


@pytest.mark.parametrize("hangs", [False, True])
def test_an_outage_of_the_store_is_not_taken_for_the_silence_of_an_attempt(
    disk: Store, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    made, outage = Watched(disk, "a"), Outage(disk, hangs)
    monkeypatch.setattr(disk, "get", outage.get)

    async def run() -> None:
        lease = held(disk)
        attempt = made.begin()
        await beaten(lease, disk, TTL / 2)
        await asyncio.sleep(TTL / 2)  # the last beat has been seen, and half of the patience is over
        outage.begin(2 * TTL)
        await asyncio.sleep(2 * TTL + 0.03)  # no beat arrives either, and the next one takes a moment
        await beaten(lease, disk, TTL / 2)
        assert not attempt.done()
        attempt.cancel()

    asyncio.run(run())
