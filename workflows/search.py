"""Search: trials of another workflow, suggested by a sampler, sharing every step that they have in common."""

from __future__ import annotations

import asyncio
import copy
import time
from collections import deque
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from functools import cached_property, partial
from random import Random
from typing import Annotated, Any, Literal, Self

from optuna.trial import FrozenTrial
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from rich.console import RenderableType

from cluster.failures import StepFailed
from cluster.flow import Asked, Flow
from cluster.ledger import Damaged, Published
from cluster.runs import Finished
from cluster.step import Runnable, key_of
from cluster.store import StoreError
from search_spaces.goals import Constraint, Objective
from search_spaces.records import frozen_trial
from search_spaces.samplers import Sampler
from search_spaces.samplers.tpe import TPE
from search_spaces.space import Space
from search_spaces.study import Study
from tasks.component import Placement, kind_of, members
from tasks.task import Result
from tasks.training.train import Train
from workflows import Workflow
from workflows.content import OrName, field_of, read_content, set_field
from workflows.figures import Figures
from workflows.mistakes import lines_of
from workflows.report import Report
from workflows.search_report import report_on
from workflows.search_steps import OUTCOMES, Ask, Found, Front, Told, Trial, computed, finished_of, outcomes_to_bytes
from workflows.stopping import Peer, Stopping, wrong_stops
from workflows.subjects import at_path


class Budget(BaseModel):
    """How long to search; it ends at whichever is spent first."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    trials: int | None = Field(default=None, ge=1)
    """Trials asked for."""
    sample_steps: int | None = Field(default=None, ge=1)
    """Sample-steps of all told trials together, each step counted once."""
    hours: float | None = Field(default=None, gt=0)
    """Since the driver was started; where this strikes depends on the machine."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if self.trials is None and self.sample_steps is None and self.hours is None:
            raise ValueError("give at least one of trials, sample_steps, hours")
        return self


class Search(Workflow):
    """Search over another workflow's fields with Optuna (Akiba et al. 2019, arXiv 1907.10902).

    Trial n is asked for when trials 0 to n - `parallel` are told, in the order of their numbers; those between count as
    running. So what is asked depends on results alone and not on what was quicker, and an interrupted search goes on
    with the very trials of an uninterrupted one.
    """

    kind: Literal["search"] = "search"
    base: Annotated[dict[str, Any], OrName(read_content)]
    """What every trial runs: a shipped recipe's name, the path of one, or its content."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """Fields of it to set for every trial, by dotted path."""
    space: Annotated[Space, OrName(Space.load)]
    """What is varied: a shipped space's name, the path of one, or its content."""
    objectives: tuple[Objective, ...] = Field(min_length=1)
    """Figures to make large or small, measured on validation data."""
    constraints: tuple[Constraint, ...] = ()
    """Bounds that a trial must keep to be on the front."""
    sampler: Annotated[Sampler, OrName(lambda kind: {"kind": kind})] = TPE()
    """What suggests the next trial."""
    start: tuple[dict[str, Any], ...] = ()
    """Parameters of the first trials, before the sampler is asked."""
    stopping: Stopping | None = None
    """When to give a trial up before its end."""
    parallel: int = Field(default=2, ge=1, le=64)
    """Trials that are asked for before the results of the first of them are known."""
    seed: int = Field(default=0, ge=0)
    """Of the sampler."""
    budget: Annotated[Budget, Placement()]
    """How long to search; a study goes on where a smaller budget ended it."""

    @cached_property
    def key(self) -> str:
        """The name of the study: everything but its budget."""
        return key_of(self.identity(), {})

    def check(self) -> None:
        """Builds the workflow at the ends of every parameter, and looks for every figure that is asked for."""
        kind = self.base.get("kind")
        if kind == kind_of(type(self)):
            raise ValueError("base: a search over searches is none; name another workflow's recipe")
        searchable = [name for name, each in members(Workflow).items() if each.figures is not Workflow.figures]
        if kind not in searchable:
            raise ValueError(f"base: kind '{kind}' comes to no figures to search by; allowed: {', '.join(searchable)}")
        with at_path("sampler"):
            self.sampler.check(self.space, len(self.objectives))
        for place, parameters in enumerate(self.start):
            with at_path(f"start.{place}"):
                self.space.require(parameters)
        for name, parameters in self.space.probes():
            workflow = self._probed(f"space: {name} = {parameters[name]!r}", parameters)
            self._require_figures(workflow)
            for _, fields in self.shortened(parameters):
                with at_path("stopping"):
                    self.workflow(parameters, fields).check()
        if self.stopping is not None:
            with at_path("stopping"):
                self.stopping.check(len(self.objectives))

    def _probed(self, where: str, parameters: Mapping[str, Any]) -> Workflow:
        """The workflow of these parameters, able to run; what is wrong without them too is the base's mistake."""
        try:
            workflow = self.workflow(parameters)
            workflow.check()
        except ValueError as error:
            line = lines_of(error)[0]
            try:
                self.workflow({}).check()
            except ValueError as alone:
                where = "base" if lines_of(alone)[0] == line else where
            raise ValueError(f"{where}: {line}") from None
        return workflow

    def _require_figures(self, workflow: Workflow) -> None:
        names = workflow.figure_names()
        wanted = [(f"objectives.{place}", objective.figure) for place, objective in enumerate(self.objectives)]
        wanted += [(f"constraints.{place}", constraint.figure) for place, constraint in enumerate(self.constraints)]
        for where, figure in wanted:
            if figure not in names:
                raise ValueError(f"{where}: no step reports '{figure}'; allowed: {', '.join(names)}")

    def content(self, parameters: Mapping[str, Any], fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The recipe of a trial.

        Args:
            parameters: of the space.
            fields: to set beside them, by dotted path.

        Raises:
            ValueError: a path leads nowhere.
        """
        content = copy.deepcopy(self.base)
        chosen = self.space.fields(parameters)
        for path, value in [*self.changes.items(), ("split", "validation"), *chosen, *(fields or {}).items()]:
            try:
                set_field(content, path, copy.deepcopy(value))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
        return content

    def workflow(self, parameters: Mapping[str, Any], fields: Mapping[str, Any] | None = None) -> Workflow:
        """The workflow of a trial.

        Raises:
            ValueError: it is none.
        """
        return TypeAdapter(Workflow).validate_python(self.content(parameters, fields))

    def shortened(self, parameters: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rungs below the end of a trial: the place of each, and what to set for it."""
        if self.stopping is None:
            return
        own = field_of(self.content(parameters), self.stopping.field)
        for index, rung in enumerate(self.stopping.rungs):
            if not isinstance(own, int | float) or rung < own:
                yield index, {self.stopping.field: rung}

    async def run(self, flow: Flow) -> None:
        """Asks, runs and tells, until the budget is spent; then measures the front on test data."""
        study = Study(self.key, self.space, self.sampler, self.objectives, self.constraints, self.start)
        told: list[Told] = []
        running: deque[asyncio.Task[Told]] = deque()
        began = time.monotonic()
        try:
            while not self._is_spent(study.asked, told, time.monotonic() - began):
                if len(running) == self.parallel:
                    await self._tell(study, told, running)
                elif (begun := await self._next(flow, study, told)) is not None:
                    running.append(asyncio.ensure_future(begun))
                else:
                    break
            while running:
                await self._tell(study, told, running)
        except asyncio.CancelledError:
            for trial in running:
                trial.cancel()
            raise
        finally:
            await asyncio.gather(*running, return_exceptions=True)
        if all(trial.state == "failed" for trial in told):
            raise ValueError(f"all {len(told)} trials failed; the first: {told[0].metrics['message']}")
        await self._close(flow, study, told)

    async def _tell(self, study: Study, told: list[Told], running: deque[asyncio.Task[Told]]) -> None:
        """Waits for the oldest trial that runs, and tells the study."""
        told.append(await running[0])
        running.popleft()
        study.tell(len(told) - 1, told[-1].metrics)

    async def _next(self, flow: Flow, study: Study, told: Sequence[Told]) -> Coroutine[Any, Any, Told] | None:
        """The next trial, found or asked for, to be run; None when there is nothing left to try."""
        number = study.asked
        here = flow.at(trial=number)
        known = await here.find(Trial(self.key, number, _not_told))
        if known is not None:
            study.replay(known.metrics["parameters"])
            return _found(known)

        def suggested() -> Result:
            return Result({"parameters": study.ask() if study.asked == number else study.parameters(number)})

        parameters = (await here.step(Ask(self.key, number, suggested)))["parameters"]
        if parameters is None:
            return None
        if study.asked == number:  # it was found, not suggested just now
            study.replay(parameters)
        return self._trial(here, number, parameters, self._peers(study, told))

    async def _trial(self, flow: Flow, number: int, parameters: dict[str, Any], peers: Sequence[Peer]) -> Told:
        """Runs a trial, to its end or to where it is stopped, and puts down what became of it."""
        asked: Asked = []
        rungs: dict[str, Figures] = {}
        try:
            became = await self._contested(flow.noting(asked), parameters, peers, rungs)
        except StepFailed as failure:
            if failure.cause not in ("user", "oom"):
                raise  # the same trial again, when the search is resumed
            became = {"state": "failed", "cause": failure.cause, "message": str(failure)}
        except ValueError as misfit:
            became = {"state": "failed", "cause": "user", "message": lines_of(misfit)[0]}
        except Damaged as damaged:
            raise StoreError(f"{damaged}; go on with --verify, which computes it anew") from None
        steps = {step.step.key: int(step.metrics.get("sample_steps", 0)) for step in await finished_of(asked)}
        record = {
            "number": number,
            "parameters": parameters,
            **became,
            "rungs": {rung: dict(figures.values) for rung, figures in rungs.items()},
            "sample_steps": sum(steps.values()),
            "steps": steps,
        }
        files = {OUTCOMES: outcomes_to_bytes(rungs)} if rungs else {}
        found = Found(record, files, {f"step{place}": key for place, key in enumerate(steps)})
        return Told.of(await flow.step(Trial(self.key, number, lambda: found)).published())

    async def _contested(
        self, flow: Flow, parameters: Mapping[str, Any], peers: Sequence[Peer], rungs: dict[str, Figures]
    ) -> dict[str, Any]:
        """Runs a trial from rung to rung; says what became of it."""
        planned = self.workflow(parameters).planned()
        for index, fields in self.shortened(parameters):
            assert self.stopping is not None  # without it there are no rungs
            (rung,) = map(str, fields.values())
            rungs[rung] = await self._figures(flow, parameters, fields)
            why = self.stopping.objection(self.objectives, index, rungs[rung], peers, planned)
            if why is not None:
                return {"state": "stopped", "stopped_at": rung, "because": why}
            flow = flow.continuing(partial(_stopped_at, rung, self.stopping.field))
        figures = await self._figures(flow, parameters)
        values = {objective.figure: figures.values[objective.figure] for objective in self.objectives}
        return {"state": "complete", "values": values, "figures": dict(figures.values)}

    async def _figures(
        self, flow: Flow, parameters: Mapping[str, Any], fields: Mapping[str, Any] | None = None
    ) -> Figures:
        """Runs one workflow to its end."""
        workflow, asked = self.workflow(parameters, fields), Asked()
        await workflow.run(flow.noting(asked))
        return workflow.figures(await finished_of(asked))

    def _peers(self, study: Study, told: Sequence[Told]) -> list[Peer]:
        """What a trial is compared with at its rungs: those told before it was asked for."""
        front = study.front() if self.stopping is not None else []
        return [
            Peer(number, trial.rungs, trial.metrics.get("figures"), number in front)
            for number, trial in enumerate(told)
            if trial.state != "failed"
        ]

    async def _close(self, flow: Flow, study: Study, told: Sequence[Told]) -> None:
        """Measures the front on test data, runs a sample of the stopped trials to their end, and puts both down."""
        front = [told[number].metrics for number in study.front()]
        stopped = [trial.metrics for trial in told if trial.state == "stopped"]
        audit = min(self.stopping.audit if self.stopping is not None else 0, len(stopped))
        again = sorted(Random(self.key).sample(stopped, audit), key=lambda trial: trial["number"])
        tests = (
            self._figures(flow.at(trial=trial["number"], split="test"), trial["parameters"], {"split": "test"})
            for trial in front
        )
        ends = (
            self._figures(flow.at(trial=trial["number"], audit="to the end"), trial["parameters"]) for trial in again
        )
        figures = await flow.together(*tests, *ends)
        found: dict[str, Any] = {
            "front": [
                {**{name: trial[name] for name in ("number", "parameters", "figures")}, "test": dict(test.values)}
                for trial, test in zip(front, figures, strict=False)
            ]
        }
        if again:
            ended = [trial.values for trial in figures[len(front) :]]
            ends_of = [trial.metrics["figures"] for trial in told if trial.state == "complete"]
            found["audit"] = wrong_stops(self.objectives, ended, ends_of, self.constraints)
        await flow.step(Front(self.key, len(told), lambda: Result(found)))

    def _is_spent(self, asked: int, told: Sequence[Told], seconds: float) -> bool:
        budget = self.budget
        return (
            (budget.trials is not None and asked >= budget.trials)
            or (budget.hours is not None and seconds >= 3600 * budget.hours)
            or (budget.sample_steps is not None and computed(trial.metrics for trial in told) >= budget.sample_steps)
        )

    def frozen(self, number: int, metrics: Mapping[str, Any]) -> FrozenTrial | None:
        """A trial as Optuna keeps it, from the metrics of a step `ask` or `trial`; None if nothing was left to ask."""
        if metrics["parameters"] is None:
            return None
        told = metrics if "state" in metrics else None
        return frozen_trial(self.space, self.objectives, self.constraints, number, metrics["parameters"], told)

    def so_far(self, notes: Sequence[Finished]) -> RenderableType | None:
        """The front."""
        report = report_on(self, notes)
        return report.table() if report.rows else None

    def report(self, finished: Sequence[Finished]) -> Report:
        """The front, and what the search cost."""
        return report_on(self, finished)


async def _found(trial: Published) -> Told:
    return Told.of(trial)


def _not_told() -> Result:
    raise AssertionError("a trial that is looked for is not made")


def _stopped_at(rung: str, field: str, task: Runnable) -> Runnable | None:
    """The training that a rung stopped early."""
    step = int(rung)
    if not field.endswith("stop_at") or not isinstance(task, Train) or (task.stop_at or step + 1) <= step:
        return None
    return task.model_copy(update={"stop_at": step})
