"""Engines under test: on threads for what is between driver and ledger, on Ray for all of it, in a process to kill.

As a program, `python -m tests.cluster.driving STORE TRACE WIDTH PAUSE`, it is a driver with a Ray session of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

from cluster.engine import Engine
from cluster.executor import RayExecutor
from cluster.flow import Flow, Handle
from cluster.order import Order, Outcome, Terms
from cluster.placement import Machine
from cluster.session import ClusterUnreachable, session
from cluster.store import Store, StoreError
from cluster.worker import run_step
from tests.cluster.toys import Add, Count

SHORT = Terms(beat=0.1, ttl=2.0, checkpoint=0.2, farewell=5.0)

Workflow = Callable[[Flow], Awaitable[Any]]
Event = tuple[str, Handle, dict[str, Any]]


class ThreadExecutor:
    """Attempts as threads of this process: quick, and as real as far as store and ledger go."""

    def __init__(self) -> None:
        self.orders: list[Order] = []

    def submit(self, order: Order) -> Any:
        self.orders.append(order)
        loop = asyncio.get_running_loop()
        outcome = loop.create_future()

        def run() -> None:
            made = run_step(order)
            with contextlib.suppress(RuntimeError):  # the loop is gone: the test did not wait for this one
                loop.call_soon_threadsafe(lambda: None if outcome.done() else outcome.set_result(made))

        threading.Thread(target=run, daemon=True).start()
        return outcome

    async def outcome(self, running: Any) -> Outcome:
        return await running  # type: ignore[no-any-return]

    def draining(self) -> frozenset[str]:
        return frozenset()

    def machines(self) -> tuple[Machine, ...]:
        return ()

    def kill(self, running: Any) -> None:
        running.set_result(Outcome("failed", "preempted", "killed"))


class Outage:
    """Reads from a store that is away for a while: they are refused, or answered when it is back."""

    def __init__(self, store: Store, hangs: bool) -> None:
        self._read = store.get
        self._hangs = hangs
        self._until = 0.0

    def begin(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def get(self, path: str) -> bytes | None:
        left = self._until - time.monotonic()
        if left > 0 and not self._hangs:
            raise StoreError(f"{path}: away")
        time.sleep(max(0.0, left))
        return self._read(path)


class Driver:
    """One engine and what it told."""

    def __init__(self, store: Store, executor: Any, terms: Terms = SHORT, verify: bool = False) -> None:
        self.store = store
        self.events: list[Event] = []
        self.engine = Engine(
            store, executor, lambda state, handle, **news: self._hear(state, handle, news), terms, verify
        )
        self.on_event: Callable[[str, Handle], None] = lambda state, handle: None

    def run(self, workflow: Workflow, limit: float = 60.0) -> Any:
        return asyncio.run(asyncio.wait_for(self.drive(workflow), limit))

    async def drive(self, workflow: Workflow) -> Any:
        return await workflow(Flow(self.engine))

    def count(self, state: str) -> int:
        return sum(event[0] == state for event in self.events)

    def states(self, handle: Handle) -> list[str]:
        return [state for state, whose, _ in self.events if whose is handle]

    def news(self, state: str) -> list[dict[str, Any]]:
        return [news for told, _, news in self.events if told == state]

    def _hear(self, state: str, handle: Handle, news: dict[str, Any]) -> None:
        self.events.append((state, handle, news))
        self.on_event(state, handle)


async def fan(flow: Flow, trace: str, width: int, pause: float) -> int:
    """A chain of three levels that opens and closes: 2 * width + 2 steps."""
    base = flow.step(Count(20, pause, f"{trace}.count"))
    rows = [flow.step(Add(number, trace, pause), x=base) for number in range(width)]
    tops = [flow.step(Add(100 + number, trace, pause), x=row) for number, row in enumerate(rows)]
    total = flow.step(Add(1000, trace), **{f"x{number}": top for number, top in enumerate(tops)})
    return int((await total)["sum"])


def fan_sum(width: int) -> int:
    return 1000 + sum(20 + number + 100 + number for number in range(width))


def main() -> int:
    url, trace, width, pause = sys.argv[1:5]

    def say(**record: Any) -> None:
        sys.stdout.write(json.dumps(record) + "\n")
        sys.stdout.flush()

    def tell(state: str, handle: Handle, **news: Any) -> None:
        say(state=state, key=handle.key, cause=news.get("cause"), message=news.get("message"))

    with session("local", cpus=2) as ray:
        engine = Engine(Store.open(url), RayExecutor(ray, patience=4.0), tell, SHORT)
        try:
            say(state="result", sum=asyncio.run(fan(Flow(engine), trace, int(width), float(pause))))
        except ClusterUnreachable as error:
            say(state="lost", message=str(error))
            return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
