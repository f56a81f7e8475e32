"""The driver's eye on attempts: a frozen node never answers, and a drained one takes its steps along."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from cluster.executor import Executor
from cluster.ledger import Lease, Ledger
from cluster.store import StoreError
from cluster.worker import Order, Outcome, ask_to_leave


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


class Watch:
    """Waits for attempts, looks at their leases in between, and acts on what nodes do to them."""

    def __init__(self, ledger: Ledger, executor: Executor, driver: str, ttl: float) -> None:
        self._ledger = ledger
        self._executor = executor
        self._driver = driver
        self._ttl = ttl
        self._asked: set[str] = set()
        """Attempts that were asked to leave their node, and have not yet."""

    async def outcome(self, order: Order, running: Any) -> Outcome:
        """Waits for an attempt, but not for one whose heart stopped; asks one to leave whose node will go.

        Args:
            order: the attempt.
            running: what the executor gave for it.
        """
        waiting = asyncio.ensure_future(self._executor.outcome(running))
        pulse = Pulse(self._ttl)
        fence = order.over + 1
        try:
            while True:
                done, _ = await asyncio.wait({waiting}, timeout=self._ttl / 3)
                if done:
                    return waiting.result()
                try:
                    lease = await asyncio.to_thread(self._ledger.current_lease, order.key, fence)
                    if lease is None or lease.record["attempt"] != order.attempt:
                        continue
                    fence = lease.fence
                    await self._take_along(lease)
                except StoreError:
                    continue
                if pulse.stopped(lease.record["beat"]):
                    self._executor.kill(running)
                    waiting.cancel()
                    return Outcome("failed", "partition", f"no sign of life for {self._ttl:g} s")
        finally:
            self._asked.discard(order.attempt)

    async def _take_along(self, lease: Lease) -> None:
        """Asks an attempt whose node is leaving to save its state and leave first."""
        attempt = lease.record["attempt"]
        if attempt not in self._asked and lease.record.get("node") in self._executor.leaving():
            self._asked.add(attempt)
            await asyncio.to_thread(ask_to_leave, self._ledger.store, self._driver, self._asked)
