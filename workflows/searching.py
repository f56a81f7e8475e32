"""A search under way: what was asked and told, and what runs."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from cluster.failures import StepFailed
from cluster.flow import Asked, Flow
from cluster.ledger import Damaged
from cluster.step import Runnable
from cluster.store import StoreError
from search_spaces.study import Study
from tasks.task import Result
from tasks.training.train import Train
from workflows.figures import Figures
from workflows.mistakes import lines_of
from workflows.search_steps import (
    OUTCOMES,
    Ask,
    Found,
    Front,
    Spending,
    Told,
    Trial,
    finished_of,
    outcomes_to_bytes,
    own_steps,
)
from workflows.stopping import Peer, wrong_stops

if TYPE_CHECKING:
    from workflows.search import Search

OURS = ("user", "oom")
"""Failures that are the trial's own; after any other the same trial is run again when the search is resumed."""


class Searching:
    """One driver's part in a search."""

    def __init__(self, search: Search, flow: Flow) -> None:
        self._search = search
        self._flow = flow
        self._study = Study(
            search.key, search.space, search.sampler, search.objectives, search.constraints, search.start
        )
        self._told: list[Told] = []
        self._running: deque[asyncio.Task[Told]] = deque()
        self._spending = Spending()
        self._began = time.monotonic()

    async def run(self) -> None:
        """Asks, runs and tells, until the budget is spent; then closes.

        Raises:
            StepFailed: all trials failed.
            StoreError: what a trial left is damaged.
        """
        try:
            await self._search_on()
            if self._told and all(trial.state == "failed" for trial in self._told):
                first = self._told[0].metrics
                raise StepFailed(first["failed_step"], f"all {len(self._told)} trials", "user", first["message"])
            await self._close()
        except Damaged as damaged:
            raise StoreError(f"{damaged}; go on with --verify, which computes it anew") from None

    async def _search_on(self) -> None:
        running = self._running
        try:
            while not self._is_spent():
                if len(running) == self._search.parallel:
                    await self._tell()
                elif (begun := await self._next()) is not None:
                    running.append(asyncio.ensure_future(begun))
                else:
                    break
            while running:
                await self._tell()
        except asyncio.CancelledError:
            for trial in running:
                trial.cancel()
            raise
        finally:
            await asyncio.gather(*running, return_exceptions=True)

    def _is_spent(self) -> bool:
        budget, seconds = self._search.budget, time.monotonic() - self._began
        return (
            (budget.trials is not None and self._study.asked >= budget.trials)
            or (budget.hours is not None and seconds >= 3600 * budget.hours)
            or (budget.sample_steps is not None and self._spending.reaches(budget.sample_steps))
        )

    async def _tell(self) -> None:
        """Waits for the oldest trial that runs, and tells the study."""
        trial = await self._running[0]
        self._running.popleft()
        self._study.tell(len(self._told), trial.metrics)
        self._told.append(trial)
        self._spending.add(trial.metrics["steps"])

    async def _next(self) -> Coroutine[Any, Any, Told] | None:
        """The next trial, found or asked for, to be run; None when there is nothing left to try."""
        study, number = self._study, self._study.asked
        here = self._flow.at(trial=number)
        if (told := await self._known(here, number)) is not None:
            study.replay(told.metrics["parameters"])
            return _at_once(told)

        def suggested() -> Result:
            return Result({"parameters": study.ask() if study.asked == number else study.parameters(number)})

        ask = here.step(Ask(self._search, number, suggested))
        parameters = (await ask)["parameters"]
        if parameters is None:
            return None
        if study.asked == number:  # it was found, not suggested just now
            study.replay(parameters)
        elif study.parameters(number) != parameters:
            raise ValueError(
                f"trial {number} was asked with {parameters} by another driver, and with {study.parameters(number)} by "
                "this one: drivers of one study need one version of Optuna"
            )
        return self._trial(here, number, parameters, ask.key, self._peers())

    async def _known(self, flow: Flow, number: int) -> Told | None:
        """What became of a trial, if that was put down already and is whole."""
        note = await flow.find(Trial(self._search, number, _not_told))
        try:
            return Told.of(note) if note is not None else None
        except Damaged:  # its steps are there: it is run again, and finds them
            return None

    async def _trial(
        self, flow: Flow, number: int, parameters: dict[str, Any], ask: str, peers: Sequence[Peer]
    ) -> Told:
        """Runs a trial, to its end or to where it is stopped, and puts down what became of it."""
        asked: Asked = []
        rungs: dict[str, Figures] = {}
        try:
            became = await self._contested(flow.noting(asked), parameters, peers, rungs)
        except StepFailed as failure:
            if failure.cause not in OURS:
                raise
            message = f"{failure.message} [{failure.key[:12]}]"
            became = {"state": "failed", "cause": failure.cause, "message": message, "failed_step": failure.key}
        except ValueError as misfit:
            became = {"state": "failed", "cause": "user", "message": lines_of(misfit)[0], "failed_step": ask}
        steps = await own_steps(asked)
        record = {
            "number": number,
            "parameters": parameters,
            **became,
            "rungs": {rung: dict(figures.values) for rung, figures in rungs.items()},
            "sample_steps": sum(steps.values()),
            "steps": steps,
        }
        files = {OUTCOMES: outcomes_to_bytes(rungs)} if rungs else {}
        sources = {"ask": ask, **{f"step{place:04d}": key for place, key in enumerate(steps)}}
        await flow.step(Trial(self._search, number, lambda: Found(record, files, sources)))
        return Told(record, rungs)

    async def _contested(
        self, flow: Flow, parameters: Mapping[str, Any], peers: Sequence[Peer], rungs: dict[str, Figures]
    ) -> dict[str, Any]:
        """Runs a trial from rung to rung; says what became of it."""
        search = self._search
        planned = search.workflow(parameters).planned()
        for index, fields in search.shortened(parameters):
            assert search.stopping is not None  # without it there are no rungs
            ((path, value),) = fields.items()
            rung = str(value)
            rungs[rung] = await self._figures(flow, parameters, fields)
            why = search.stopping.objection(search.objectives, index, rungs[rung], peers, planned)
            if why is not None:
                return {"state": "stopped", "stopped_at": rung, "because": why}
            if path.endswith("stop_at"):
                flow = flow.continuing(partial(_stopped_at, value))
        figures = await self._figures(flow, parameters)
        values = {objective.figure: figures.values[objective.figure] for objective in search.objectives}
        return {"state": "complete", "values": values, "figures": dict(figures.values)}

    async def _figures(
        self, flow: Flow, parameters: Mapping[str, Any], fields: Mapping[str, Any] | None = None
    ) -> Figures:
        """Runs one workflow to its end."""
        workflow, asked = self._search.workflow(parameters, fields), Asked()
        await workflow.run(flow.noting(asked))
        return workflow.figures(await finished_of(asked))

    def _peers(self) -> list[Peer]:
        """What a trial is compared with at its rungs: those told before it was asked for."""
        front = self._study.front() if self._search.stopping is not None else []
        return [
            Peer(number, trial.rungs, trial.metrics.get("figures"), number in front)
            for number, trial in enumerate(self._told)
            if trial.state != "failed"
        ]

    async def _close(self) -> None:
        """Measures the front on test data, runs a sample of the stopped trials to their end, and puts both down."""
        search, complete = self._search, [trial.metrics for trial in self._told if trial.state == "complete"]
        front = [self._told[number].metrics for number in self._study.front()]
        stopped = [trial.metrics for trial in self._told if trial.state == "stopped"]
        audit = min(search.stopping.audit if search.stopping is not None else 0, len(stopped))
        again = sorted(Random(search.key).sample(stopped, audit), key=lambda trial: int(trial["number"]))
        tested = [self._measured(trial, {"split": "test"}, split="test") for trial in front]
        ended = [self._measured(trial, {}, audit="to the end") for trial in again]
        measured = await self._flow.together(*tested, *ended)
        found: dict[str, Any] = {
            "front": [
                {
                    **{name: trial[name] for name in ("number", "parameters", "figures")},
                    **({"test": test["figures"]} if "figures" in test else test),
                }
                for trial, test in zip(front, measured, strict=False)
            ]
        }
        if again:
            ends = [end.get("figures") for end in measured[len(front) :]]
            found["audit"] = wrong_stops(
                search.objectives, ends, [trial["figures"] for trial in complete], search.constraints
            )
        await self._flow.step(Front(search, len(self._told), lambda: Result(found)))

    async def _measured(self, trial: Mapping[str, Any], fields: Mapping[str, Any], **place: str) -> dict[str, Any]:
        """The figures of a trial that is told already, or why there are none."""
        try:
            here = self._flow.at(trial=trial["number"], **place)
            return {"figures": dict((await self._figures(here, trial["parameters"], fields)).values)}
        except StepFailed as failure:
            if failure.cause not in OURS:
                raise
            return {"failed": failure.message}


async def _at_once(told: Told) -> Told:
    return told


def _not_told() -> Result:
    raise AssertionError("a trial that is looked for is not made")


def _stopped_at(step: int, task: Runnable) -> Runnable | None:
    """The training that a rung stopped at this step, of the same training to its end or to a later rung."""
    if not isinstance(task, Train) or (task.stop_at is not None and task.stop_at <= step):
        return None
    return task.model_copy(update={"stop_at": step})
