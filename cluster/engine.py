"""The step engine: finds, leases, runs, retries and recomputes, until every handle has its result."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from typing import Any, TypeVar

from cluster.failures import Budget, StepFailed
from cluster.flow import Handle
from cluster.ledger import Damaged, Ledger, Published, is_free
from cluster.order import EVERYBODY, Executor, Order, Outcome, Terms, forget_leaving
from cluster.placement import Nodes, Turns, with_gpus
from cluster.profiles import Placing
from cluster.step import Recorded
from cluster.store import Store, StoreError
from cluster.watch import Pulse, Watch

IN_FLIGHT = 1024
"""Attempts handed to the executor at once: enough to keep a large cluster busy, few enough to keep the driver small."""
STORE_PATIENCE = 120.0
"""Seconds for which a driver asks a store again that does not answer, beyond what the store's client tries itself."""

Answer = TypeVar("Answer")


class Stopped(RuntimeError):
    """The driver was asked to stop; nothing is lost."""


class Engine:
    """Makes handles come true on an executor, with the ledger as the only memory."""

    def __init__(
        self,
        store: Store,
        executor: Executor,
        tell: Callable[..., None] = lambda state, handle, **news: None,
        terms: Terms | None = None,
        verify: bool = False,
        placing: Placing | None = None,
        wait_for_nodes: float = 600.0,
    ) -> None:
        """Prepares an engine; nothing starts before the first handle.

        Args:
            store: where results are kept.
            executor: what runs attempts.
            tell: called with a state, the handle and news, from the event loop. States are `asked`, `found`, `started`,
                `retried`, `recomputed`, `published`, `failed`, `waiting` (another driver computes it), `held-up` (the
                store does not answer) and `unplaced`.
            terms: heartbeat, lease and checkpoint times.
            verify: whether stored files are read and checked before they are relied on.
            placing: says what attempts need of a node; what their tasks ask for when not given.
            wait_for_nodes: seconds for which a step waits for a node that could run it, when there is none.
        """
        self.driver = secrets.token_hex(6)
        self._ledger = Ledger(store)
        self._store = store
        self._executor = executor
        self._tell = tell
        self._terms = terms or Terms()
        self._verify = verify
        self._placing = placing or Placing()
        nodes = Nodes(executor.machines)
        self._watch = Watch(self._ledger, executor, self.driver, self._terms.ttl, self._placing, nodes, wait_for_nodes)
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._turns = Turns(nodes)
        self._attempts = 0
        self._running: dict[str, Any] = {}
        self._stopping = asyncio.Event()

    async def obtain(self, handle: Handle) -> Published:
        """The published step, computed by this driver or by whoever holds its lease.

        Raises:
            StepFailed: it, or a step that feeds it, failed for good.
            Stopped: the driver is stopping.
        """
        self._tell("asked", handle)
        published = await self._find(handle)
        if published is not None:
            self._tell("found", handle, published=published)
            return published
        if isinstance(handle.task, Recorded):
            raise self._failure(handle, _lost("it is gone from the store"))
        for upstream in handle.inputs.values():
            await upstream.published()
        published = await self._compute(handle)
        self._tell("published", handle, published=published)
        return published

    async def find(self, handle: Handle) -> Published | None:
        """The published step, or None; a damaged one is none, and is set aside when it is asked for."""
        try:
            published = await self._whole(handle)
        except Damaged:
            return None
        if published is not None:
            self._tell("asked", handle)
            self._tell("found", handle, published=published)
        return published

    async def look_up(self, prefix: str) -> Published:
        """The published step whose key begins like this.

        Raises:
            ValueError: no published step or several begin so, or this is no key.
        """
        return await asyncio.to_thread(self._ledger.look_up, prefix)

    async def stop(self) -> None:
        """Asks running steps to save and leave, and ends those that do not."""
        self._stopping.set()
        if self._running:
            with contextlib.suppress(StoreError):  # then nobody hears it, and all are ended below
                await self._watch.ask_to_leave(EVERYBODY)
        patience = time.monotonic() + self._terms.farewell
        while self._running and time.monotonic() < patience:
            await asyncio.sleep(0.05)
        self.kill()
        with contextlib.suppress(StoreError):  # `gc` removes it later
            await asyncio.to_thread(forget_leaving, self._store, self.driver)

    def kill(self) -> None:
        """Ends running steps at once."""
        for running in self._running.values():
            self._executor.kill(running)

    async def _compute(self, handle: Handle) -> Published:
        budget = Budget()
        over = 0
        while True:
            outcome, order = await self._attempt(handle, over, budget.starved)
            if outcome.state == "outgrown":  # to be asked for anew
                continue
            if outcome.state in ("published", "fenced") or outcome.cause == "store":
                published = await self._find(handle, fresh=outcome.state == "published")
                if published is not None:
                    await self._learn(handle, published)
                    return published
            if outcome.damaged is not None and budget.spend("store", made_progress=False):
                await self._mend(handle, outcome.damaged)
                continue
            if outcome.state in ("busy", "fenced"):
                published, over = await self._wait_for_holder(handle)
                if published is not None:
                    return published
                continue
            if outcome.damaged is not None:
                outcome = Outcome("failed", "store", f"{outcome.message}, again and again")
            if outcome.state == "published":
                outcome = Outcome("failed", "store", "its publication was damaged or gone when it was looked for")
            over = await self._after_failure(handle, outcome, order, budget)

    async def _learn(self, handle: Handle, published: Published) -> None:
        """Remembers what a step took of memory; what waits for more of it than it needs is then asked for anew."""
        looks_up = self._placing.looks_up(handle.task)
        if looks_up and await asyncio.to_thread(self._placing.learn, handle.task, published.manifest):
            self._watch.look_again()

    async def _attempt(self, handle: Handle, over: int, starved: int) -> tuple[Outcome, Order]:
        if self._placing.looks_up(handle.task):
            await asyncio.to_thread(self._placing.load, handle.task)
        async with self._turns.turn(self._placing.needs(handle.task, starved)), self._slots:
            if self._stopping.is_set():
                raise Stopped
            self._attempts += 1
            needs = self._placing.needs(handle.task, starved)
            moves = (needs.gpus > 0) != (handle.task.gpus > 0)
            order = Order(
                key=handle.key,
                task=with_gpus(handle.task, needs.gpus) if moves else handle.task,
                needs=needs,
                inputs={name: upstream.key for name, upstream in handle.inputs.items()},
                store=self._store.url,
                driver=self.driver,
                attempt=f"{self.driver}-{self._attempts}",
                over=over,
                terms=self._terms,
                prefix=_finished(handle.prefix),
            )
            running = self._executor.submit(order)
            self._running[order.attempt] = running
            self._tell("started", handle, attempt=order.attempt)
            try:
                outcome = await self._watch.outcome(
                    order, running, lambda why: self._tell("unplaced", handle, message=why)
                )
            finally:
                del self._running[order.attempt]
        if outcome.state == "unplaced":
            raise self._failure(handle, outcome, order.attempt)
        if outcome.state == "stopped":
            if self._stopping.is_set():
                raise Stopped
            outcome = Outcome("failed", "preempted", "its node is being drained: it saved its state and left")
        return outcome, order

    async def _wait_for_holder(self, handle: Handle) -> tuple[Published | None, int]:
        """Waits until another's lease ends in a publication, or in silence: then its fence may be passed over."""
        self._tell("waiting", handle)
        pulse = Pulse(self._terms.ttl)
        while not self._stopping.is_set():
            asked = time.monotonic()
            published = await self._find(handle)
            if published is not None:
                return published, 0
            lease = await self._ask(handle, self._ledger.current_lease, handle.key)
            if lease is None or is_free(lease):
                return None, 0
            pulse.looked(asked)
            if pulse.stopped(lease.record["beat"], lease.fence):
                return None, lease.fence
            await asyncio.sleep(self._terms.beat / 4)
        raise Stopped

    async def _after_failure(self, handle: Handle, outcome: Outcome, order: Order, budget: Budget) -> int:
        """Decides on another attempt.

        Returns:
            the fence of the newest lease whose holder is known to be dead: the failed attempt's, if it took one.
        """
        lease = await self._ask(handle, self._ledger.current_lease, handle.key)
        held = lease is not None and lease.record["attempt"] == order.attempt
        progressed = held and lease is not None and lease.record.get("saves", 0) > 0
        cause: Any = outcome.cause
        if self._stopping.is_set():
            raise Stopped
        if not budget.spend(cause, progressed) or (cause == "oom" and self._had_all(handle, order, budget.starved)):
            raise self._failure(handle, outcome, order.attempt)
        self._tell("retried", handle, cause=cause, message=outcome.message, attempt=order.attempt)
        if cause in ("store", "partition"):
            await asyncio.sleep(0.5)
        return lease.fence if held and lease is not None else order.over

    def _had_all(self, handle: Handle, order: Order, starved: int) -> bool:
        """Whether an attempt that ran out of memory was given as much of it as any node has."""
        more = self._placing.needs(handle.task, starved)
        return 0 < more.memory <= order.needs.memory and more.gpus <= order.needs.gpus

    def _failure(self, handle: Handle, outcome: Outcome, attempt: str = "") -> StepFailed:
        """Tells of the end of a step, and gives it as an error."""
        cause: Any = outcome.cause
        self._tell("failed", handle, cause=cause, message=outcome.message, log=outcome.log, attempt=attempt)
        return StepFailed(handle.key, str(handle), cause, outcome.message, outcome.log)

    async def _mend(self, handle: Handle, damaged: Damaged) -> None:
        if damaged.key == handle.key:
            await self._set_aside(handle, damaged)
            return
        upstream = next(upstream for upstream in handle.inputs.values() if upstream.key == damaged.key)
        if upstream.result.done() and not upstream.result.exception():  # the first reader to notice; the others wait
            upstream.result = asyncio.ensure_future(self._recompute(upstream, damaged))
        await upstream.published()

    async def _recompute(self, handle: Handle, damaged: Damaged) -> Published:
        await self._set_aside(handle, damaged)
        return await self.obtain(handle)

    async def _set_aside(self, handle: Handle, damaged: Damaged) -> None:
        aside = await self._ask(handle, self._ledger.set_aside, damaged)
        if aside is not None and isinstance(handle.task, Recorded):
            raise self._failure(handle, _lost(f"{damaged}, and set aside"))
        if aside is not None:
            self._tell("recomputed", handle, message=str(damaged), aside=aside)

    async def _find(self, handle: Handle, fresh: bool = False) -> Published | None:
        """The published step, or None.

        Args:
            handle: the step.
            fresh: whether a worker has just published it: a shared folder may not show that here for a while.
        """
        until = time.monotonic() + (self._terms.ttl if fresh else 0.0)
        while True:
            try:
                published = await self._whole(handle)
            except Damaged as damaged:
                await self._set_aside(handle, damaged)
                return None
            if published is not None or time.monotonic() >= until or self._stopping.is_set():
                return published
            await asyncio.sleep(min(0.5, self._terms.ttl / 10))

    async def _whole(self, handle: Handle) -> Published | None:
        """The published step, or None; raises Damaged if that is known of it."""
        published = await self._ask(handle, self._ledger.find, handle.key)
        if published is not None and self._verify:
            await self._ask(handle, published.verify)
        return published

    async def _ask(self, handle: Handle, question: Callable[..., Answer], *about: Any) -> Answer:
        """What the ledger answers; a store that is away for a while does not end a run of days.

        Raises:
            StoreError: it has been away for too long, or the driver is stopping.
        """
        until = time.monotonic() + STORE_PATIENCE
        told = False
        while True:
            try:
                return await asyncio.to_thread(question, *about)
            except StoreError as error:
                if self._stopping.is_set() or time.monotonic() >= until:
                    raise
                if not told:
                    self._tell("held-up", handle, message=str(error))
                    told = True
            await asyncio.sleep(min(1.0, self._terms.ttl / 10))


def _finished(prefix: Handle | None) -> str | None:
    """The key of a prefix that is there to go on from."""
    if prefix is None or not prefix.result.done() or prefix.result.cancelled() or prefix.result.exception():
        return None
    return prefix.key


def _lost(how: str) -> Outcome:
    """The end of a step that is known by its key alone."""
    return Outcome("failed", "store", f"{how}; its key does not say how to compute it: resume the run that made it")
