"""What a workflow writes with: steps that start at once, and handles to wait on."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakValueDictionary

from cluster.failures import StepFailed
from cluster.ledger import Published
from cluster.step import Recorded, Runnable, key_of


@dataclass(eq=False)
class Handle:
    """A step that was asked for. Await it for its metrics; pass it on without waiting."""

    task: Runnable
    inputs: Mapping[str, Handle] = field(repr=False)  # else a repr walks every path through the graph
    at: Mapping[str, Any]
    """Where in the workflow it stands (replicate, level, ...): for people, no part of its identity."""
    key: str
    prefix: Handle | None = field(default=None, repr=False)
    """A shorter step of the same work: an attempt may go on from its `progress.state`, to the very same bytes."""
    askers: list[Mapping[str, Any]] = field(default_factory=list, repr=False)
    """The places that asked for it, each as often as it did."""
    result: asyncio.Future[Published] = field(init=False, repr=False)

    def __await__(self) -> Generator[Any, None, Mapping[str, Any]]:
        published = yield from asyncio.shield(self.result).__await__()
        return published.metrics

    async def published(self) -> Published:
        """The finished step, to read its files."""
        return await asyncio.shield(self.result)

    def __str__(self) -> str:
        return f"{self.task.kind} {describe(self.at)} [{self.key[:12]}]".replace("  ", " ")


class Engine(Protocol):
    """Whoever makes handles come true: the cluster, or a plan that only looks."""

    async def obtain(self, handle: Handle) -> Published:
        """The published step, computed if need be."""
        ...

    async def find(self, handle: Handle) -> Published | None:
        """The published step, or None; nothing is computed."""
        ...

    async def look_up(self, prefix: str) -> Published:
        """The published step whose key begins like this.

        Raises:
            ValueError: no published step or several begin so, or this is no key.
        """
        ...


Asked = list[tuple[Mapping[str, Any], Handle]]
"""Steps in the order in which they were asked for, each with the place that asked."""


class Flow:
    """A workflow's view of the engine, at a place such as `replicate 1, level 3`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._handles: WeakValueDictionary[str, Handle] = WeakValueDictionary()
        self._at: Mapping[str, Any] = {}
        self._notes: tuple[Asked, ...] = ()
        self._shortened: Callable[[Runnable], Runnable | None] = lambda task: None

    def at(self, **place: Any) -> Flow:
        """The same flow, further in: its steps carry these coordinates too."""
        inner = copy.copy(self)
        inner._at = {**self._at, **place}
        return inner

    def noting(self, asked: Asked) -> Flow:
        """The same flow; what is asked of it, here and further in, is added to a list, whoever asked for it before."""
        inner = copy.copy(self)
        inner._notes = (*self._notes, asked)
        return inner

    def continuing(self, shortened: Callable[[Runnable], Runnable | None]) -> Flow:
        """The same flow, whose steps may go on from shorter ones that were asked for with the same inputs.

        Args:
            shortened: the task whose result a task goes on from, to the same bytes as without it, or None.
        """
        inner = copy.copy(self)
        inner._shortened = shortened
        return inner

    def step(self, task: Runnable, **inputs: Handle | None) -> Handle:
        """Asks for a step; the same task with the same inputs is the same step, whoever asks.

        Args:
            task: what to compute.
            inputs: the steps that feed it; those given as None are left out.
        """
        given = {name: handle for name, handle in inputs.items() if handle is not None}
        shorter = self._shortened(task)
        prefix = self._handles.get(_key(shorter, given)) if shorter is not None else None
        return self._handle(task, given, _key(task, given), prefix)

    async def find(self, task: Runnable, **inputs: Handle) -> Published | None:
        """A step if it is finished already, and whole; nothing is computed."""
        handle = Handle(task, inputs, self._at, _key(task, inputs))
        handle.result = asyncio.get_running_loop().create_future()
        published = await self._engine.find(handle)
        if published is not None:
            handle.result.set_result(published)
        return published

    async def stored(self, key_prefix: str) -> Handle:
        """A finished step by its key alone, whoever computed it: to read, or to feed other steps.

        It is there when this returns. If it turns out damaged, it cannot be computed anew: the manifest of a step says
        what its task was, but is not that task.

        Args:
            key_prefix: the key, or an unambiguous beginning of at least 4 digits.

        Raises:
            ValueError: no finished step or several begin so, or this is no key.
            StepFailed: its files were checked and are not those that were published.
        """
        published = await self._engine.look_up(key_prefix)
        handle = self._handle(Recorded(published.manifest["task"]), {}, published.key)
        await handle.published()
        return handle

    def _handle(self, task: Runnable, inputs: Mapping[str, Handle], key: str, prefix: Handle | None = None) -> Handle:
        """The one handle of a step."""
        handle = self._handles.get(key)
        if handle is None:
            handle = self._handles[key] = Handle(task, inputs, self._at, key, prefix)
            handle.result = asyncio.ensure_future(self._engine.obtain(handle))
            handle.result.add_done_callback(_mark_seen)
        handle.askers.append(self._at)
        for asked in self._notes:
            asked.append((self._at, handle))
        return handle

    async def together(self, *branches: Awaitable[Any]) -> list[Any]:
        """Runs branches side by side; when one fails the others still finish, then its failure is raised."""
        results = await asyncio.gather(*branches, return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        for failure in sorted(failures, key=lambda failure: isinstance(failure, StepFailed)):
            raise failure
        return list(results)


def describe(at: Mapping[str, Any]) -> str:
    """Coordinates in words."""
    return ", ".join(str(value) if isinstance(value, str) else f"{name} {value}" for name, value in at.items())


def _key(task: Runnable, inputs: Mapping[str, Handle]) -> str:
    return key_of(task.identity(), {name: handle.key for name, handle in inputs.items()})


def _mark_seen(result: asyncio.Future[Published]) -> None:
    """A failed step is reported by the engine; asyncio need not complain that nobody awaited it."""
    if not result.cancelled():
        result.exception()
