"""The driver's watch over its attempts: gives up on those that fall silent, and asks those on a leaving node to go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from cluster.ledger import Damaged, Lease, Ledger
from cluster.order import Executor, Order, Outcome, ask_to_leave
from cluster.placement import Nodes, Unplaced
from cluster.profiles import Placing
from cluster.store import StoreError

LOOKS = 3
"""At a lease within its `ttl`."""
PASSED_OVER = Outcome("fenced", message="another driver's attempt took its lease")

ENDED = {
    "done": Outcome("published"),
    "released": Outcome("failed", "partition", "it ended, but nobody could tell how"),
}
"""What is known of an attempt by its lease alone."""


class Pulse:
    """Whether beats still come, judged by this process's clock alone: clocks of other machines may be wrong."""

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._last: tuple[Any, ...] = ()
        self._since = time.monotonic()

    def stopped(self, *beat: Any) -> bool:
        """Whether the last new beat is too long ago.

        Args:
            beat: what was read just now.
        """
        if beat != self._last:
            self._last = beat
            self._since = time.monotonic()
        return time.monotonic() - self._since > self._ttl

    def looked(self, asked: float) -> None:
        """Restarts the count if the answer took long: while the store was away, no beat could arrive either.

        Args:
            asked: when the look began.
        """
        if time.monotonic() - asked > self._ttl / LOOKS:
            self.could_not_look()

    def could_not_look(self) -> None:
        """Restarts the count: a driver that cannot read the store cannot know that a holder is silent."""
        self._since = time.monotonic()


class Watch:
    """Waits for attempts, looks at their leases in between, and acts on what nodes do to them."""

    def __init__(
        self,
        ledger: Ledger,
        executor: Executor,
        driver: str,
        ttl: float,
        placing: Placing,
        nodes: Nodes,
        wait_for_nodes: float,
    ) -> None:
        self._ledger = ledger
        self._executor = executor
        self._driver = driver
        self._ttl = ttl
        self._placing = placing
        self._nodes = nodes
        self._unplaced = Unplaced(wait_for_nodes)
        self._learned: asyncio.Future[None] | None = None
        self._asked: set[str] = set()
        """Attempts that were asked to leave their node, and have not yet; or `EVERYBODY`."""
        self._asking = asyncio.Lock()

    async def outcome(self, order: Order, running: Any, unplaced: Callable[[str], None]) -> Outcome:
        """Waits for an attempt's outcome; gives up when its beats stop, and asks it to leave when its node is drained.

        One that has not started ends as `unplaced` when no node could run it for too long, and as `outgrown` when it
        should be asked for anew: its needs are known better by now, or a node is gone that may have taken it along,
        of which Ray does not always tell.

        Args:
            order: the attempt.
            running: what the executor gave for it.
            unplaced: told why no node can run it.
        """
        waiting = asyncio.ensure_future(self._executor.outcome(running))
        seen = _Seen(self._ttl, order.over + 1, self._present())
        try:
            while True:
                either: set[asyncio.Future[Any]] = {waiting, self._news()}
                await asyncio.wait(either, timeout=self._ttl / LOOKS, return_when=asyncio.FIRST_COMPLETED)
                if waiting.done():
                    return waiting.result()
                given_up = await self._look(order, seen, unplaced)
                if given_up is None:
                    continue
                if given_up not in ENDED.values():
                    self._executor.kill(running)
                return given_up
        finally:
            waiting.cancel()
            self._asked.discard(order.attempt)

    async def _look(self, order: Order, seen: _Seen, unplaced: Callable[[str], None]) -> Outcome | None:
        """Looks at an attempt's lease once; what it has come to, if it is not to be waited for any longer."""
        asked = time.monotonic()
        try:
            lease = await asyncio.to_thread(self._ledger.current_lease, order.key, seen.fence)
            if lease is None or lease.record["attempt"] != order.attempt:
                passed = lease is not None and (seen.began or await self._is_published(order.key))
                return PASSED_OVER if passed else self._in_queue(order, seen, unplaced)
            seen.fence, seen.began = lease.fence, True
            await self._take_along(lease)
        except StoreError:
            seen.pulse.could_not_look()
            return None
        seen.pulse.looked(asked)
        state = lease.record["state"]
        if state != "held" and seen.ended_for(asked) > self._ttl / 4:
            return ENDED[state]  # a node that froze keeps to itself that an attempt has ended
        if seen.pulse.stopped(lease.record["beat"]):
            return Outcome("failed", "partition", f"no sign of life for {self._ttl:g} s")
        return None

    def look_again(self) -> None:
        """Wakes whoever waits: needs may be known better now."""
        self._news().set_result(None)

    def _news(self) -> asyncio.Future[None]:
        if self._learned is None or self._learned.done():
            self._learned = asyncio.get_running_loop().create_future()
        return self._learned

    def _present(self) -> set[str]:
        """The nodes that are alive, also those that are being drained."""
        return {machine.id for machine in self._executor.machines()} | set(self._executor.draining())

    def _in_queue(self, order: Order, seen: _Seen, unplaced: Callable[[str], None]) -> Outcome | None:
        """What becomes of an attempt that has not started, if it is not to wait on."""
        outgrown = order.needs.provisional and self._placing.needs(order.task) != order.needs
        if outgrown or seen.lost_a_node(self._present()):
            return Outcome("outgrown")
        why = self._nodes.misfit(order.needs)
        say, end = self._unplaced.look(order.needs, why)
        if say:
            unplaced(why)
        return Outcome("unplaced", "node", end) if end else None

    async def _is_published(self, key: str) -> bool:
        """Whether another attempt has come to the end: of this one nothing may ever be heard again."""
        try:
            return await asyncio.to_thread(self._ledger.find, key) is not None
        except Damaged:
            return True

    async def _take_along(self, lease: Lease) -> None:
        """Asks an attempt whose node is leaving to save its state and leave first."""
        attempt = lease.record["attempt"]
        nodes = {lease.record.get("node"), *lease.record.get("beside", ())}
        if attempt not in self._asked and nodes & set(self._executor.draining()):
            await self.ask_to_leave(attempt)

    async def ask_to_leave(self, attempt: str) -> None:
        """Asks an attempt, or `EVERYBODY`, to save its state and leave; who was asked before stays asked.

        Raises:
            StoreError: the store does not take it; then nobody hears it.
        """
        async with self._asking:  # the last to write must have heard of all
            await asyncio.to_thread(ask_to_leave, self._ledger.store, self._driver, {*self._asked, attempt})
            self._asked.add(attempt)


class _Seen:
    """What the driver has seen of an attempt."""

    def __init__(self, ttl: float, fence: int, present: set[str]) -> None:
        self.pulse = Pulse(ttl)
        self.fence = fence
        """The one of its lease, or the first that it may have."""
        self.began = False
        self._ended: float | None = None
        self._nodes = present
        """The nodes that it may have been sent to while it has no lease; Ray does not always tell when one dies."""

    def ended_for(self, now: float) -> float:
        """Seconds since its lease was first seen to have ended."""
        self._ended = self._ended or now
        return now - self._ended

    def lost_a_node(self, present: set[str]) -> bool:
        """Whether one of the nodes that it may have been sent to is gone."""
        self._nodes = self._nodes | present
        return self._nodes != present
