"""What the code under test takes for `time`, `threading` and an event loop."""

from __future__ import annotations

import asyncio
import contextvars
from asyncio import events
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

from tests.cluster.simulation.world import EPOCH, Died, Process, Strand, World

THREADS = 64
"""Of a driver's pool, as `workflows.command.driver` has them."""


class Time:
    """The module `time` as the running process sees it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def monotonic(self) -> float:
        return self._world.now

    def time(self) -> float:
        process = self._world.process
        return EPOCH + self._world.now + (process.machine.skew if process is not None else 0.0)

    def sleep(self, seconds: float) -> None:
        if seconds:
            self._world.sleep(seconds)


class Datetime:
    """As much of `datetime.datetime` as the ledger needs."""

    def __init__(self, time: Time) -> None:
        self._time = time

    def now(self, zone: Any) -> datetime:
        return datetime.fromtimestamp(self._time.time(), UTC)


class Threading:
    """The module `threading`, whose threads are strands."""

    def __init__(self, world: World) -> None:
        self._world = world

    def Event(self) -> Event:  # noqa: N802 - as in `threading`
        return Event(self._world)

    def Thread(self, target: Callable[[], None], name: str = "", daemon: bool = True) -> Thread:  # noqa: N802
        return Thread(self._world, target)


class Event:
    def __init__(self, world: World) -> None:
        self._world = world
        self._flag = False
        self._waiters: list[tuple[Strand, int]] = []

    def set(self) -> None:
        self._flag = True
        self._world.wake(self._waiters)

    def is_set(self) -> bool:
        return self._flag

    def wait(self, timeout: float | None = None) -> bool:
        if not self._flag:
            mine = (self._world.strand, self._world.strand.turn)
            self._world.wait(self._waiters, timeout)
            if not self._flag:
                self._waiters.remove(mine)
        return self._flag


class Thread:
    def __init__(self, world: World, target: Callable[[], None]) -> None:
        self._world = world
        self._target = target
        self._strand: Strand | None = None

    def start(self) -> None:
        process = self._world.process
        assert process is not None
        self._strand = self._world.spawn(process, self._target, self._world.strand.label)

    def join(self) -> None:
        assert self._strand is not None
        if not self._strand.done:
            self._world.wait(self._strand.waiters)


class _Call:
    """A callback that can be taken back."""

    __slots__ = ("args", "call", "context", "off")

    def __init__(self, call: Callable[..., Any], args: tuple[Any, ...], context: contextvars.Context | None) -> None:
        self.call, self.args = call, args
        self.context = context or contextvars.copy_context()
        self.off = False

    def cancel(self) -> None:
        self.off = True

    def cancelled(self) -> bool:
        return self.off


class Loop:
    """The event loop of one simulated driver, as far as asyncio asks for one; with the process it ends, silently."""

    def __init__(self, world: World, process: Process) -> None:
        self.world = world
        self.process = process
        self._ready: deque[_Call] = deque()
        self._due = False
        self._busy = 0
        self._waiting: deque[Callable[[], None]] = deque()

    def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
        call = _Call(callback, args, context)
        if not self.process.dead:
            self._ready.append(call)
            if not self._due:
                self._due = True
                self.world.after(0.0, self._step, self.process)
        return call

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        call = _Call(callback, args, context)
        if not self.process.dead:
            self.world.after(delay, lambda: self._fire(call), self.process)
        return call

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return self.call_later(when - self.world.now, callback, *args, context=context)

    def _fire(self, call: _Call) -> None:
        if not call.off:
            self._ready.append(call)
            self._step()

    def _step(self) -> None:
        """Runs what is ready; none of it can sleep, since all that does is in strands."""
        self._due = True
        events._set_running_loop(cast(Any, self))
        self.world.strand = _Standing(self.process)  # type: ignore[assignment]
        try:
            while self._ready and not self.process.dead:
                call = self._ready.popleft()
                if not call.off:
                    call.context.run(call.call, *call.args)
        finally:
            events._set_running_loop(None)
            self._due = False

    def in_thread(self, work: Callable[[], Any], label: Any = None) -> asyncio.Future[Any]:
        """Runs something in a thread of the process."""
        future: asyncio.Future[Any] = self.create_future()

        def run() -> None:
            try:
                result = work()
            except Died:
                raise
            except BaseException as error:
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)
            self._busy -= 1
            if self._waiting:
                self._waiting.popleft()()

        def begin() -> None:
            self._busy += 1
            self.world.spawn(self.process, run, label)

        if self._busy < THREADS:
            begin()
        else:
            self._waiting.append(begin)
        return future

    def time(self) -> float:
        return self.world.now

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=cast(Any, self))

    def create_task(self, coro: Any, **named: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=cast(Any, self), **named)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:
        return self.in_thread(lambda: func(*args))

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Futures of dead drivers are left as they are."""


class _Standing:
    """Stands for the event loop where a strand is asked for: its process, and nothing that can sleep."""

    __slots__ = ("label", "process")

    def __init__(self, process: Process) -> None:
        self.process = process
        self.label = None


async def to_thread(function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """`asyncio.to_thread` on a simulated loop."""
    loop = cast(Loop, events.get_running_loop())
    return await loop.in_thread(lambda: function(*args, **named))
