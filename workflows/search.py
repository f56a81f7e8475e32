"""Search: trials of another workflow, suggested by a sampler, sharing every step that they have in common."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from optuna.trial import FrozenTrial
from pydantic import Field, TypeAdapter, model_validator
from rich.console import Group, RenderableType
from rich.text import Text

from cluster.flow import Flow
from cluster.runs import Finished
from cluster.step import key_of
from search_spaces.checked import Checked
from search_spaces.goals import Constraint, Objective
from search_spaces.records import frozen_trial
from search_spaces.samplers import Sampler
from search_spaces.samplers.tpe import TPE
from search_spaces.space import Space
from tasks.component import Placement, kind_of, members
from tasks.task import Task
from workflows import Workflow
from workflows.content import OrName, field_of, read_content, set_field
from workflows.mistakes import lines_of
from workflows.report import Report
from workflows.search_report import report_on
from workflows.searching import Searching
from workflows.stopping import Stopping
from workflows.subjects import at_path

MEASURED_ON = re.compile(r"replicates|examples|seed|(.*\.)?data(\..*)?")
"""Fields that decide on which examples a trial is measured, and how often."""


class Budget(Checked):
    """How long to search; it ends at whichever is spent first."""

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

    @cached_property
    def code(self) -> str:
        """What the study runs: the versions of all tasks and components, and the data, in one digest."""
        tasks = {kind: task.version for kind, task in members(Task).items()}
        trials = [self.workflow(parameters).identity() for _, parameters in self.space.probes()]
        return key_of({"tasks": tasks, "trials": trials}, {})[:16]

    def check(self) -> None:
        """Builds the workflow at the ends of every parameter, and looks for every figure that is asked for."""
        kind = self.base.get("kind")
        if kind == kind_of(type(self)):
            raise ValueError("base: a search over searches is none; name another workflow's recipe")
        searchable = [name for name, each in members(Workflow).items() if each.figures is not Workflow.figures]
        if kind not in searchable:
            if kind is None:
                raise ValueError(f"base: `kind` is missing; allowed: {', '.join(searchable)}")
            raise ValueError(f"base: kind '{kind}' comes to no figures to search by; allowed: {', '.join(searchable)}")
        aims = [objective.figure for objective in self.objectives]
        if twice := next((aim for aim in aims if aims.count(aim) > 1), None):
            raise ValueError(f"objectives: '{twice}' is given twice; give each figure once")
        self._require_validation_data()
        with at_path("changes"):
            _changed(self.base, self.changes)
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

    def _require_validation_data(self) -> None:
        """Nothing may lead a search to test data, nor a paired comparison to other examples."""
        own = self.stopping
        paths = [("changes", path) for path in self.changes]
        paths += [(f"space: {name}", path) for name, p in self.space.probes() for path, _ in self.space.fields(p)]
        for where, path in [*paths, *([("stopping.field", own.field)] if own is not None else [])]:
            if where.startswith("space") and path in self.changes:
                raise ValueError(f"changes: {path}: the space sets this field too; leave one of them out")
            if path == "split":
                raise ValueError(f"{where}: split: a search looks at validation data, and at test data when it closes")
            if own is not None and own.paired and where != "changes" and MEASURED_ON.fullmatch(path):
                raise ValueError(
                    f"{where}: {path} decides what is measured on, and `{kind_of(type(own))}` compares trials example "
                    "by example; leave it out, or stop by another rule"
                )

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
        """The recipe of a trial, measured on validation data.

        Args:
            parameters: of the space.
            fields: to set beside them, by dotted path.

        Raises:
            ValueError: a path leads nowhere.
        """
        fixed = {**self.changes, "split": "validation"}
        return _changed(self.base, {**fixed, **dict(self.space.fields(parameters)), **(fields or {})})

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
        await Searching(self, flow).run()

    def frozen(self, number: int, metrics: Mapping[str, Any]) -> FrozenTrial | None:
        """A trial as Optuna keeps it, from the metrics of a step `ask` or `trial`; None if nothing was left to ask."""
        if metrics["parameters"] is None:
            return None
        told = metrics if "state" in metrics else None
        return frozen_trial(self.space, self.objectives, self.constraints, number, metrics["parameters"], told)

    def so_far(self, notes: Sequence[Finished]) -> RenderableType | None:
        """The front, and how many trials are told."""
        report = report_on(self, notes)
        return Group(*([report.table()] if report.rows else []), Text(report.notes[0])) if report.results else None

    def report(self, finished: Sequence[Finished]) -> Report:
        """The front, and what the search cost."""
        return report_on(self, finished)


def _changed(content: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a recipe's content with other fields, by dotted path.

    Raises:
        ValueError: a path leads nowhere.
    """
    changed = copy.deepcopy(dict(content))
    for path, value in fields.items():
        with at_path(path):
            set_field(changed, path, copy.deepcopy(value))
    return changed
