"""A plan: the steps that a workflow would ask for, and which of them are stored already."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from cluster.failures import StepFailed
from cluster.flow import Flow, Handle
from cluster.ledger import Damaged, Ledger, Published
from cluster.step import Recorded
from cluster.store import Store

PATIENCE = 50
"""Turns of the event loop without a new step after which a workflow can only be waiting for missing results."""
SIDE_BY_SIDE = 32
"""Look-ups in the store at a time."""


@dataclass
class Plan:
    """What a run will ask for."""

    steps: list[PlannedStep] = field(default_factory=list)
    """Those known now: a workflow whose length depends on results goes on when these are there."""

    failure: StepFailed | None = None
    """What a run will end with, if that is known already."""

    @property
    def stored(self) -> list[PlannedStep]:
        """Those that need no work."""
        return [step for step in self.steps if step.published is not None]

    @property
    def to_run(self) -> list[PlannedStep]:
        """Those that do."""
        return [step for step in self.steps if step.published is None]

    def records(self) -> list[dict[str, Any]]:
        """The steps as JSON."""
        return [step.record() for step in self.steps]


@dataclass
class PlannedStep:
    """One step of a plan."""

    handle: Handle
    published: Published | None

    def record(self) -> dict[str, Any]:
        """As JSON; a stored step speaks for itself, since who asks for it by its key does not know what fed it."""
        task = self.handle.task.identity()
        inputs = {name: upstream.key for name, upstream in self.handle.inputs.items()}
        if self.published is not None:
            inputs = dict(self.published.manifest["inputs"])
        return {"key": self.handle.key, "at": dict(self.handle.at), "task": task, "inputs": inputs}


async def make_plan(store: Store, run: Callable[[Flow], Awaitable[Any]], verify: bool = False) -> Plan:
    """Walks a workflow without computing anything.

    Awaiting a stored step gives its metrics; awaiting another one waits for ever, and when the whole workflow only
    waits, the plan ends there.
    """
    looking = _Looking(store, verify)
    workflow = asyncio.ensure_future(run(Flow(looking)))
    quiet = 0
    while not workflow.done() and quiet < PATIENCE:
        await asyncio.sleep(0)
        quiet = 0 if await looking.look_ups() else quiet + 1
    if workflow.done():
        try:
            workflow.result()
        except StepFailed as failure:  # what is stored says that it failed, and will again
            looking.plan.failure = failure
    workflow.cancel()
    for step in looking.plan.steps:
        step.handle.result.cancel()
    return looking.plan


class _Looking:
    """An engine that finds steps and computes none."""

    def __init__(self, store: Store, verify: bool) -> None:
        self._verify = verify
        self._ledger = Ledger(store)
        self._asked: list[tuple[str, asyncio.Future[Published | None]]] = []
        self.plan = Plan()

    async def obtain(self, handle: Handle) -> Published:
        step = PlannedStep(handle, None)
        self.plan.steps.append(step)
        try:
            published = await self._found(handle.key)
        except Damaged as damaged:
            if isinstance(handle.task, Recorded):
                raise ValueError(f"{damaged}; resume the run that made this step") from None
            published = None  # the run will set it aside
        step.published = published
        if published is not None:
            return published
        if handle.task.threads == 0:  # the driver's own, and no work: without it nothing further would be known
            return Published(handle.key, {"metrics": handle.task.run(None).metrics, "files": {}}, self._ledger.store)
        await asyncio.Event().wait()
        raise AssertionError("nothing sets this event")

    async def find(self, handle: Handle) -> Published | None:
        try:
            published = await self._found(handle.key)
        except Damaged:
            return None
        if published is not None:
            self.plan.steps.append(PlannedStep(handle, published))
        return published

    async def look_ups(self) -> bool:
        """Looks up what was asked for since the last call, side by side: a remote store takes its time for each.

        The answers are given in the order of asking, so that a plan does not depend on which came first.

        Returns:
            whether there was anything to look up.

        Raises:
            StoreError: the store does not answer.
        """
        asked, self._asked = self._asked, []
        if not asked:
            return False
        with ThreadPoolExecutor(min(SIDE_BY_SIDE, len(asked))) as pool:
            answers = await asyncio.to_thread(list, pool.map(self._look_up, [key for key, _ in asked]))
        for (_, future), answer in zip(asked, answers, strict=True):
            if future.cancelled():
                continue
            if isinstance(answer, Damaged):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        return True

    def _look_up(self, key: str) -> Published | Damaged | None:
        try:
            published = self._ledger.find(key)
            if published is not None and self._verify:
                published.verify()
        except Damaged as damaged:
            return damaged
        return published

    async def _found(self, key: str) -> Published | None:
        future: asyncio.Future[Published | None] = asyncio.get_running_loop().create_future()
        self._asked.append((key, future))
        return await future

    async def look_up(self, prefix: str) -> Published:
        return self._ledger.look_up(prefix)
