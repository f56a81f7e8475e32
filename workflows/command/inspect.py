"""What `plan`, `runs` and `show` say: read from the store alone, so that it is true while a run goes on elsewhere."""

from __future__ import annotations

import shlex
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.flow import describe
from cluster.ledger import Damaged, Ledger, Progress, Published
from cluster.plan import Plan, PlannedStep
from cluster.runs import Finished, Run, all_runs, log_of, named_steps
from cluster.standing import MAY_LIVE, RunState, drivers_of, holder, main_driver, run_state
from cluster.store import Store
from workflows import Workflow
from workflows.command.launch import run_id_of
from workflows.command.recipe import BadRequest, Recipe, workflow_from_record
from workflows.command.standing_view import driver_line
from workflows.command.terminal import table
from workflows.report import Report
from workflows.search_report import computed

LISTED = 24
"""Steps that are listed one by one; more are put together by what they are."""

State = Literal["stored", "running", "silent", "failed", "stopped", "waiting", "damaged"]
"""Of a step; silent is one whose holder may live and has not been heard of for a while."""


def recorded_recipe(store: Store, run_id: str, check: bool = True) -> Recipe:
    """The recipe that a run was started with last.

    Args:
        store: with the run.
        run_id: or its beginning.
        check: whether it must be able to run here.

    Raises:
        BadRequest: there is no such run, its recipe's name leads elsewhere, or this version of hedgerow no longer
            understands its recipe.
    """
    run = load_run(store, run_id)
    name = run.record.get("name", "")
    if not isinstance(name, str) or "/" in name or not name.isprintable():
        raise BadRequest(f"run {run.id}: its record calls the recipe {name!r}, which is no name of one: no / is in it")
    return Recipe(name, _workflow(run, check), run.record["recipe"])


def chosen_runs(store: Store, run_id: str) -> list[Run]:
    """One run, or all of a store when none is named.

    Raises:
        BadRequest: there is no such run.
    """
    return [load_run(store, run_id)] if run_id else all_runs(store)


def load_run(store: Store, run_id: str) -> Run:
    """A recorded run; the beginning of its id is enough.

    Raises:
        BadRequest: no run, or several, start like this.
    """
    try:
        return Run.load(store, run_id)
    except ValueError as error:
        raise BadRequest(str(error)) from None


def _workflow(run: Run, check: bool = True) -> Workflow:
    if "recipe" not in run.record:
        raise BadRequest(f"run {run.id}: its record holds no recipe")
    return workflow_from_record(run.record, check)


def plan_records(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """A plan as JSON: its steps, what is stored, and what that saves."""
    return {
        "recipe": recipe.name,
        "run": run_id_of(recipe),
        "stored": len(plan.stored),
        "to_run": len(plan.to_run),
        "sample_steps_saved": _saved(plan),
        "shared_by_trials": _shared(plan),
        "steps": [
            {**record, "kind": step.handle.task.kind, "stored": step.published is not None}
            for record, step in zip(plan.records(), plan.steps, strict=True)
        ],
    }


def plan_table(recipe: Recipe, plan: Plan) -> Group:
    """A plan for the terminal: every step, or every group of them when they are many."""
    made = table("step", "where", "key", "state")
    if len(plan.steps) <= LISTED:
        for step in plan.steps:
            handle = step.handle
            state = "stored" if step.published else "to run"
            made.add_row(handle.task.kind, Text(describe(handle.at)), handle.key[:12], state)
    else:
        for (kind, _), steps in _grouped(plan.steps).items():
            stored = sum(step.published is not None for step in steps)
            state = _counted({"stored": stored, "to run": len(steps) - stored})
            made.add_row(kind, Text(_span([step.handle.at for step in steps])), f"{len(steps)} steps", state)
    line = f"run {run_id_of(recipe)}: {len(plan.steps)} steps, {len(plan.stored)} stored, {len(plan.to_run)} to run"
    if saved := _saved(plan):
        line += f"; what is stored saves {saved:,} sample-steps of training"
    if trials := {step.handle.at["trial"] for step in plan.steps if "trial" in step.handle.at}:
        shared = _shared(plan)
        line += (
            f"\n{len(trials)} trials are known so far: what is asked next depends on results. {shared['steps']} of "
            f"these steps serve several; sharing has saved {shared['sample_steps_saved']:,} sample-steps so far"
        )
    return Group(made, Text(line))


def runs_records(store: Store) -> list[dict[str, Any]]:
    """The runs of a store as JSON, oldest first."""
    now = store.clock()
    return [_Standing(store, run, now).summary() for run in all_runs(store)]


def runs_table(records: Sequence[Mapping[str, Any]]) -> Group:
    """The runs for the terminal."""
    if not records:
        return Group(Text("no runs yet"))
    made = table("run", "recipe", "created", "state")
    for record in records:
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(record["created"]))
        made.add_row(Text(record["id"]), Text(record["recipe"]), created, _state_line(record))
    return Group(made)


def run_record(store: Store, run_id: str) -> dict[str, Any]:
    """A run as JSON: the state of its steps, its failures, its results so far.

    Raises:
        BadRequest: there is no such run.
    """
    standing = _Standing(store, load_run(store, run_id), store.clock())
    report, trouble = standing.report()
    return {
        **standing.summary(),
        "command": standing.run.record.get("command", ""),
        "failures": standing.failures(),
        "results": list(report.results) if report else None,
        "notes": list(report.notes) if report else [],
        "about": dict(report.about) if report else {},
        "results_missing_because": trouble or None,
        "steps": [step.record() for step in standing.steps],
    }


def run_view(store: Store, run_id: str) -> Group:
    """A run for the terminal.

    Raises:
        BadRequest: there is no such run.
    """
    standing = _Standing(store, load_run(store, run_id), store.clock())
    parts: list[RenderableType] = [Text(f"run {standing.run.id}: {_state_line(standing.summary())}")]
    parts += standing.driver_line()
    parts.append(standing.table())
    for failure in standing.failures():
        where = f"{failure['kind']} {failure['where']} [{failure['key'][:12]}]".replace("  ", " ")
        parts.append(Text(f"failed: {where} ({failure['cause']}): {failure['message']}"))
        if failure["log"]:
            parts.append(Text(f"  log in the store: {failure['log']}"))
        parts.append(Text(f"  to run it again: {failure['rerun']}"))
    report, trouble = standing.report()
    if trouble:
        parts.append(Text(f"no results: {trouble}"))
    elif report is not None and report.results:
        parts += report.view().renderables
    return Group(*parts)


@dataclass(frozen=True)
class StepView:
    """A step of a run and how it stands."""

    key: str
    kind: str
    at: Mapping[str, Any]
    state: State
    published: Published | None = None
    progress: Progress | None = None
    """While it runs."""

    def record(self) -> dict[str, Any]:
        """As JSON."""
        record: dict[str, Any] = {"key": self.key, "kind": self.kind, "at": dict(self.at), "state": self.state}
        if self.published is not None:
            record["seconds"] = self.published.manifest["seconds"]
        if self.progress is not None:
            record["progress"] = list(self.progress)
        return record


def step_view(ledger: Ledger, step: Mapping[str, Any], now: float, failed: bool) -> StepView:
    """How a step stands, by the ledger and, as to failure, by what a driver saw last.

    Args:
        ledger: of the store.
        step: its key, and its place and task where they are known.
        now: the time by the store's clock.
        failed: whether the last that was heard of it is its failure.
    """
    key, at = step["key"], step.get("at", {})
    kind = step.get("kind") or step.get("task", {}).get("kind", "")
    try:
        published = ledger.find(key)
    except Damaged:
        return StepView(key, kind, at, "damaged")
    if published is not None:
        return StepView(key, published.manifest["task"]["kind"], at, "stored", published)
    lease = ledger.current_lease(key)
    seems = holder(ledger, lease, now)[0] if lease is not None else "ended"
    if lease is not None and seems in MAY_LIVE:
        return StepView(key, kind, at, "running" if seems == "at work" else "silent", progress=lease.progress)
    if failed:
        return StepView(key, kind, at, "failed")
    return StepView(key, kind, at, "waiting" if lease is None else "stopped")


class _Standing:
    """How a run stands, read once."""

    def __init__(self, store: Store, run: Run, now: float) -> None:
        self.run = run
        self._store = store
        self._now = now
        log = list(log_of(store, run.id))
        events = [event for chunk in log for event in chunk.events]
        self._last = {event["key"]: event for event in events if "key" in event}
        self._driver = main_driver(drivers_of(store, run.id, log), now)
        self._seems = self._driver.state(now) if self._driver else None
        ledger = Ledger(store)
        named = named_steps(store, run.id, events).values()
        self.steps = [step_view(ledger, step, now, self._has_failed(step["key"])) for step in named]
        self.counts = Counter(step.state for step in self.steps)

    def _has_failed(self, key: str) -> bool:
        return key in self._last and self._last[key]["state"] == "failed"

    def summary(self) -> dict[str, Any]:
        """The run in a line, as JSON."""
        record = self.run.record
        return {
            "id": self.run.id,
            "recipe": record.get("name", ""),
            "created": record.get("created", 0),
            "state": self.state(),
            "steps_total": len(self.steps),
            "steps_stored": self.counts["stored"],
            "steps_running": self.counts["running"],
            "steps_failed": self.counts["failed"],
        }

    def state(self) -> RunState:
        """Where the run is."""
        return run_state(self._seems, self.counts)

    def driver_line(self) -> list[RenderableType]:
        """How its driver is, while that is more than the run's state tells."""
        if self._driver is None or self._seems in (None, "ended") or self.state() == "finished":
            return []
        silent = self._driver.silent(self._now)
        return [driver_line(self.run.id, self._store.url, self._driver, self._seems, silent)]

    def failures(self) -> list[dict[str, Any]]:
        """The failed steps, each with its cause and what to do, as JSON."""
        rerun = f"hedgerow resume {self.run.id} --store {shlex.quote(self._store.url)}"
        failures = []
        for step in self.steps:
            if step.state == "failed":
                seen = self._last[step.key]
                failures.append(
                    {
                        "key": step.key,
                        "kind": step.kind,
                        "where": describe(step.at),
                        "cause": seen.get("cause", ""),
                        "message": seen.get("message", ""),
                        "log": seen.get("log", ""),
                        "rerun": rerun,
                    }
                )
        return failures

    def report(self) -> tuple[Report | None, str]:
        """The workflow's report on what is stored so far, or why there is none."""
        finished = [Finished(step.at, step.published) for step in self.steps if step.published is not None]
        try:
            return _workflow(self.run, check=False).report(finished), ""
        except BadRequest as error:
            return None, str(error).splitlines()[0]

    def table(self) -> Table:
        """The steps that are under way or in trouble, one by one; the others counted by kind."""
        made = table("step", "where", "state", "progress")
        shown = [step for step in self.steps if step.state in ("running", "silent", "damaged", "failed")][:LISTED]
        others: dict[str, Counter[State]] = defaultdict(Counter)
        for step in self.steps:
            if step not in shown:
                others[step.kind][step.state] += 1
        for kind, counts in others.items():
            made.add_row(kind, f"{counts.total()} steps", _counted(counts), "")
        for step in shown:
            made.add_row(step.kind, Text(describe(step.at)), step.state, Text(progress_words(step.progress)))
        return made


def progress_words(progress: Sequence[Any] | None) -> str:
    """Done of total and the note, or nothing before there is any progress."""
    if progress is None or not progress[1]:
        return ""
    done, total, note = progress
    return f"{done}/{total}" + (f" {note}" if note else "")


def _state_line(record: Mapping[str, Any]) -> str:
    total, stored = record["steps_total"], record["steps_stored"]
    counts = {"running": record["steps_running"], "failed": record["steps_failed"]}
    more = "".join(f", {number} {state}" for state, number in counts.items() if number)
    state = {"waiting": "waits for its cluster"}.get(record["state"], record["state"])
    return f"{state}, {stored} of {total} steps stored{more}"


def _saved(plan: Plan) -> int:
    """Sample-steps of what is stored, those that trials rest on included, each step counted once."""
    stored = [step.published for step in plan.stored if step.published is not None]
    steps = {step.key: int(step.metrics.get("sample_steps", 0)) for step in stored if "steps" not in step.metrics}
    return computed([{"steps": steps}, *(step.metrics for step in stored if "steps" in step.metrics)])


def _shared(plan: Plan) -> dict[str, int]:
    """How many steps serve several trials of a search, and the sample-steps saved by that up to now."""
    told = [step.published.metrics for step in plan.stored if step.published and step.handle.task.kind == "trial"]
    saved = sum(trial["sample_steps"] for trial in told) - computed(told)
    several = 0
    for step in plan.steps:
        trials = {at["trial"] for at in step.handle.askers if "trial" in at}
        if len(trials) > 1:
            several += 1
            cost = step.published.metrics.get("sample_steps", 0) if step.published else 0
            saved += cost * (len(trials) - 1)
    return {"steps": several, "sample_steps_saved": saved}


def _grouped(steps: Iterable[PlannedStep]) -> dict[tuple[str, tuple[Any, ...]], list[PlannedStep]]:
    """Steps that differ in numbers only (replicate, level, ...) belong together; words (which control) set apart."""
    groups = defaultdict(list)
    for step in steps:
        words = tuple((name, None if isinstance(value, int) else value) for name, value in step.handle.at.items())
        groups[step.handle.task.kind, words].append(step)
    return groups


def _span(places: Sequence[Mapping[str, Any]]) -> str:
    """Coordinates of several steps in words: `replicate 0 to 4, level 0 to 12`."""
    spans = {}
    for name in places[0]:
        values = sorted({place[name] for place in places})
        spans[name] = values[0] if len(values) == 1 else f"{name} {values[0]} to {values[-1]}"
    return describe(spans)


def _counted(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{number} {state}" for state, number in counts.items() if number)
