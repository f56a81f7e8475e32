"""Starts a recipe: plan, Ray session, engine, tracking, closing report."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cluster.cache import Cache
from cluster.executor import RayExecutor
from cluster.placement import Machine, Rule
from cluster.plan import Plan, make_plan
from cluster.profiles import Placing
from cluster.runs import Run, finished_steps, write_plan
from cluster.session import abandon, check_address, session
from cluster.step import Runnable, key_of
from cluster.store import Store, StoreError
from cluster.tracking import Tracker, choose_mode
from workflows import Workflow
from workflows.command.check import TWO_WINNERS, UNCONDITIONAL
from workflows.command.driver import Driver, code_of
from workflows.command.exit_codes import Exit
from workflows.command.live import LiveView
from workflows.command.options import Options
from workflows.command.placing import check_resources, check_rules, idle_rules, refuse_impossible, rules_of
from workflows.command.probe import has_one_winner
from workflows.command.recipe import BadRequest, Recipe
from workflows.command.signals import run_with_signals
from workflows.command.terminal import print_line
from workflows.mistakes import lines_of
from workflows.report import Report

if TYPE_CHECKING:
    from workflows.command.study_view import StudyView


@dataclass
class Ended:
    """How a run ended."""

    code: Exit
    run: str
    problems: list[str]
    """A line for each failed step and for whatever else went wrong."""
    report: Report | None = None
    """None when it could not be read from the store."""
    files: list[Path] = field(default_factory=list)


def open_store(url: str, to_run: bool = False, make: bool = False) -> Store:
    """The store at a URL.

    Args:
        url: of the store.
        to_run: whether steps will be run on it; then it is tried out with a write and a read. Whoever only looks, or
            makes room, can do so on a full disk too.
        make: whether a folder that is missing is made, as it is to run.

    Raises:
        BadRequest: it is no store, is not there, may not be written, or ignores conditional puts; or the size of the
            cache of its files is none.
        StoreError: its disk is full, or its server does not answer.
    """
    try:
        store = Store.open(url, make or to_run)
    except (StoreError, ValueError) as error:
        reason = str(error)
        raise BadRequest(reason if reason.startswith("--store") else f"--store {url}: {reason}") from None
    try:
        Cache.here()
    except ValueError as error:
        raise BadRequest(str(error)) from None
    if to_run:
        tried = f"probe/{uuid.uuid4().hex}"
        with _named(url, tried):
            leases_hold = has_one_winner(store, tried)
        if not leases_hold:
            raise BadRequest(f"--store {url}: {TWO_WINNERS}: {UNCONDITIONAL}")
    elif store.is_remote:
        with _named(url, "runs"):
            next(store.entries("runs"), None)
    return store


@contextmanager
def _named(url: str, tried: str) -> Iterator[None]:
    """Errors name the store instead of what it was tried with."""
    try:
        yield
    except StoreError as error:
        raise StoreError(f"--store {url}: {str(error).removeprefix(f'{tried}: ')}") from None


def plan_of(recipe: Recipe, store: Store, verify: bool = False) -> Plan:
    """What the recipe would ask for and what of it is stored.

    Raises:
        BadRequest: data that the recipe names are missing or damaged.
    """
    try:
        return asyncio.run(make_plan(store, recipe.workflow.run, verify))
    except ValueError as error:
        raise BadRequest("\n".join(f"recipe {recipe.name}: {line}" for line in lines_of(error))) from None


def run_id_of(recipe: Recipe) -> str:
    """The name of a run: the same recipe with the same settings is the same run."""
    return f"{recipe.name}-{key_of(recipe.workflow.identity(), {})[:8]}"


def launch(
    recipe: Recipe, options: Options, console: Console, stop_if_asked: Callable[[], None] = lambda: None
) -> Ended:
    """Runs a recipe to its end, or as far as it goes; nothing that was finished is lost.

    Args:
        recipe: what to run.
        options: how and where.
        console: for progress.
        stop_if_asked: raises if a signal came before the driver listens for signals itself.

    Raises:
        BadRequest: before any work starts.
        StoreError: the store does not take the record of the run.
        ClusterUnreachable: no Ray cluster answers.
    """
    ready = _prepare(recipe, options, console)
    code, problems = Exit.DONE, list[str]()
    if ready.plan.to_run:
        code, problems = _run_on_ray(ready, console, stop_if_asked)
    elif ready.plan.failure is not None:
        code, problems = code_of(ready.plan.failure), [str(ready.plan.failure)]
    if ready.study is not None:
        problems += ready.study.end()
    return _report(ready, code, problems)


@dataclass(frozen=True)
class _Ready:
    """A run that is checked and recorded; nothing of it has started."""

    recipe: Recipe
    options: Options
    tracking: str
    store: Store
    plan: Plan
    rules: Sequence[Rule]
    """What steps need of a node."""
    folder: Path
    """Of the report."""
    study: StudyView | None
    """What shows a search as an Optuna study."""
    run: Run


def _prepare(recipe: Recipe, options: Options, console: Console) -> _Ready:
    tracking = _tracking_mode(options.wandb)
    require_address(options.address)
    store = open_store(options.store, to_run=True)
    plan = plan_of(recipe, store, options.verify)
    rules = _checked_rules(plan, options, console)
    run_id = run_id_of(recipe)
    folder = options.out / run_id
    _make(folder)
    stored, to_run = len(plan.stored), len(plan.to_run)
    console.print(f"run {run_id}: {len(plan.steps)} steps, {stored} stored, {to_run} to run", markup=False)
    record = {
        "name": recipe.name,
        "recipe": recipe.workflow.model_dump(mode="json"),
        "command": shlex.join(["hedgerow", *sys.argv[1:]]),
    }
    study = _study_view(recipe.workflow, run_id, options.study, folder, plan)
    run = Run.open(store, run_id, record)
    write_plan(store, run_id, plan.records())
    return _Ready(recipe, options, tracking, store, plan, rules, folder, study, run)


def _checked_rules(plan: Plan, options: Options, console: Console) -> Sequence[Rule]:
    """What `--place` says, if it and what the steps ask for can be had here."""
    planned = _planned(plan)
    rules = rules_of(options.place or (), planned)
    placing = Placing(rules)
    check_rules(placing, planned)
    for line in idle_rules(rules, planned):
        print_line(console, line)
    check_resources(plan, options.address, options.workers, placing)
    return rules


def _planned(plan: Plan) -> list[Runnable]:
    return [step.handle.task for step in plan.to_run]


def _run_on_ray(ready: _Ready, console: Console, stop_if_asked: Callable[[], None]) -> tuple[Exit, list[str]]:
    options = ready.options
    with ExitStack() as stack:
        with console.status("starting Ray" if options.address == "local" else f"joining {options.address}"):
            ray = stack.enter_context(session(options.address, cpus=options.workers))
        stop_if_asked()
        if options.address == "local":
            refuse_impossible(Placing(ready.rules), _planned(ready.plan), [Machine.of(node) for node in ray.nodes()])
        return _drive(ray, ready, console)


def _drive(ray: Any, ready: _Ready, console: Console) -> tuple[Exit, list[str]]:
    options, store, run = ready.options, ready.store, ready.run
    driver = Driver(ready.recipe, store, RayExecutor(ray), options, run, ready.rules)
    if ready.study is not None:
        driver.listeners.append(ready.study.tell)
    tracker = Tracker.start(store.url, run.id, ready.tracking, ready.folder)
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 1), resources.get("GPU", 0)
    with LiveView(console, store, ready.plan, cpus, gpus, ready.recipe.workflow.so_far) as view:
        driver.listeners.append(view.tell)
        driver.say = view.say
        driver.found = {"cpus": cpus, "gpus": gpus}
        try:
            code = run_with_signals(driver.drive())
        except asyncio.CancelledError:
            if driver.again is not None:
                if options.address == "local":
                    ray.shutdown()  # some of its processes would outlive this one by half a minute
                abandon()
                signal.raise_signal(driver.again)  # for whoever called
            raise
    if driver.lost and options.address != "local":
        abandon()
    with console.status("waiting for W&B"):
        if warning := tracker.stop():
            driver.problems.append(warning)
    return code, driver.problems


def _report(ready: _Ready, code: Exit, problems: list[str]) -> Ended:
    """Writes the closing report; without one the run has ended all the same."""
    ended = Ended(code, ready.run.id, problems)
    try:
        ended.report = ready.recipe.workflow.report(finished_steps(ready.store, ready.run.id))
        ended.files = ended.report.write(ready.folder)
    except (StoreError, OSError) as error:
        reason = f"--out {ready.folder}: {error.strerror}" if isinstance(error, OSError) else str(error)
        ended.problems.append(f"no report was written: {reason}; the results are in the store")
        ended.code = Exit.INFRASTRUCTURE if code in (Exit.DONE, Exit.FAILED) else code
    return ended


def _study_view(workflow: Workflow, run_id: str, url: str | None, folder: Path, plan: Plan) -> StudyView | None:
    """What shows a search as an Optuna study."""
    from workflows.search import Search

    if not isinstance(workflow, Search):
        return None
    from workflows.command.study_view import StudyView  # a database's driver, which nothing else needs

    view = StudyView(workflow, run_id, url, folder)
    view.begin(step.published for step in plan.stored if step.published is not None)
    return view


def _tracking_mode(asked: str | None) -> str:
    try:
        return choose_mode(asked)
    except ValueError as error:
        raise BadRequest(str(error)) from None


def require_address(address: str) -> None:
    """Refuses what is no address of a cluster.

    Raises:
        BadRequest: with what is allowed.
    """
    try:
        check_address(address)
    except ValueError as error:
        raise BadRequest(str(error)) from None


def _make(folder: Path) -> None:
    """The folder of the closing report, made before hours of work and not after them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRequest(f"--out {folder}: cannot make the folder: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadRequest(f"--out {folder}: the folder is not writable")
