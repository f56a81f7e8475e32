"""Starts a recipe: plan, Ray session, engine, tracking, closing report."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.engine import Engine, Stopped
from cluster.executor import RayExecutor
from cluster.failures import INFRASTRUCTURE, StepFailed
from cluster.flow import Flow, Handle
from cluster.plan import Plan, make_plan
from cluster.runs import EventLog, Run, finished_steps, write_plan
from cluster.session import ClusterUnreachable, session
from cluster.step import key_of
from cluster.store import Store, StoreError
from cluster.tracking import Tracker, choose_mode
from cluster.worker import Terms
from workflows.live import LiveView
from workflows.recipe import BadRequest, Recipe
from workflows.report import Report

DONE, FAILED, WRONG, INFRASTRUCTURE_FAILED, INCONCLUSIVE, PREEMPTED, INTERRUPTED = 0, 1, 2, 3, 4, 75, 130


@dataclass(frozen=True)
class Options:
    """How and where to run: nothing of it changes results."""

    store: str
    out: Path
    address: str = "local"
    workers: int | None = None
    wandb: str | None = None
    """W&B mode; online for those who have an API key, offline for others, when not given."""
    checkpoint: float = 10.0
    fail_fast: bool = False
    verify: bool = False


@dataclass
class Ended:
    """How a run ended."""

    code: int
    run: str
    report: Report
    files: list[Path]
    problems: list[str]


def open_store(url: str) -> Store:
    """The store at a URL, tried out with a write and a read.

    Raises:
        BadRequest: it cannot be reached, written or read.
    """
    try:
        store = Store.open(url)
        probe, content = f"probe/{uuid.uuid4().hex}", os.urandom(8)
        if not store.create(probe, content) or store.get(probe) != content:
            raise StoreError("what was written cannot be read back")
        store.delete([probe])
    except (StoreError, ValueError) as error:
        reason = str(error)
        raise BadRequest(reason if reason.startswith("--store") else f"--store {url}: {reason}") from None
    return store


def plan_of(recipe: Recipe, store: Store, verify: bool = False) -> Plan:
    """What the recipe would ask for and what of it is stored.

    Raises:
        BadRequest: data that the recipe names are missing or damaged.
    """
    try:
        return asyncio.run(make_plan(store, recipe.workflow.run, verify))
    except ValueError as error:
        raise BadRequest(f"recipe {recipe.name}: {error}") from None


def run_id_of(recipe: Recipe) -> str:
    """The name of a run: the same recipe with the same settings is the same run."""
    return f"{recipe.name}-{key_of(recipe.workflow.identity(), {})[:8]}"


def launch(recipe: Recipe, options: Options, console: Console) -> Ended:
    """Runs a recipe to its end, or as far as it goes; nothing that was finished is lost.

    Raises:
        BadRequest: before any work starts.
        ClusterUnreachable: no Ray cluster answers.
    """
    tracking = _tracking_mode(options.wandb)
    store = open_store(options.store)
    plan = plan_of(recipe, store, options.verify)
    _check_resources(plan, options.address)
    run_id = run_id_of(recipe)
    stored, to_run = len(plan.stored), len(plan.to_run)
    console.print(f"run {run_id}: {len(plan.steps)} steps, {stored} stored, {to_run} to run", markup=False)
    record = {
        "name": recipe.name,
        "recipe": recipe.workflow.model_dump(mode="json"),
        "command": shlex.join(["hedgerow", *sys.argv[1:]]),
    }
    run = Run.open(store, run_id, record)
    write_plan(store, run_id, plan.records())
    code, problems = DONE, list[str]()
    if plan.to_run:
        code, problems = _run_on_ray(recipe, plan, run, store, options, tracking, console)
    report = recipe.workflow.report(finished_steps(store, run_id))
    return Ended(code, run_id, report, report.write(options.out / run_id), problems)


def _run_on_ray(
    recipe: Recipe, plan: Plan, run: Run, store: Store, options: Options, tracking: str, console: Console
) -> tuple[int, list[str]]:
    with session(options.address, cpus=options.workers) as ray:
        workers = int(ray.cluster_resources().get("CPU", 1))
        driver = _Driver(recipe, store, RayExecutor(ray), options, run)
        tracker = Tracker.start(store.url, run.id, tracking, options.out / run.id)
        with LiveView(console, store, f"run {run.id}", len(plan.steps), workers) as view:
            driver.listeners.append(view.tell)
            code = asyncio.run(driver.drive())
    problems = driver.problems
    if warning := tracker.stop():
        problems.append(warning)
    return code, problems


class _Driver:
    """One process's part in a run: it may be killed at any moment and started again."""

    def __init__(self, recipe: Recipe, store: Store, executor: Any, options: Options, run: Run) -> None:
        self._workflow = recipe.workflow
        self._options = options
        self._engine = Engine(store, executor, self._tell, Terms(checkpoint=options.checkpoint), verify=options.verify)
        self._log = EventLog(store, run.id, self._engine.driver)
        self._signal: signal.Signals | None = None
        self._failures: dict[str, StepFailed] = {}
        self._stopper: asyncio.Task[None] | None = None
        self.listeners: list[Callable[..., None]] = []
        self.problems: list[str] = []

    async def drive(self) -> int:
        """Runs the workflow and says how it ended, as an exit code."""
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, self._stop, name)
        self._log.write("run", state="started", driver=self._engine.driver)
        try:
            await self._workflow.run(Flow(self._engine))
            code = DONE
        except Stopped:
            code = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: PREEMPTED, None: FAILED}[self._signal]
        except StepFailed as failure:
            code = _code_of(failure)
        except (StoreError, ClusterUnreachable) as error:
            self.problems.append(str(error))
            code = INFRASTRUCTURE_FAILED
        if self._stopper is not None:
            await self._stopper
        code = max([code, *map(_code_of, self._failures.values())]) if code in (FAILED, INFRASTRUCTURE_FAILED) else code
        self._log.write("run", state="ended", driver=self._engine.driver, code=code)
        try:
            self._log.close()
        except StoreError as error:
            self.problems.append(f"store: {error}")
            return INFRASTRUCTURE_FAILED
        return code

    def _stop(self, signal_number: signal.Signals | None = None) -> None:
        if self._stopper is None:
            self._signal = signal_number
            self._stopper = asyncio.ensure_future(self._engine.stop())

    def _tell(self, state: str, handle: Handle, **news: Any) -> None:
        shown = {name: value for name, value in news.items() if name != "published"}
        if state != "asked":
            self._log.write("step", state=state, key=handle.key, kind=handle.task.kind, at=dict(handle.at), **shown)
        if state == "failed":
            failure = StepFailed(handle.key, str(handle), news["cause"], news["message"], news["log"])
            self._failures[handle.key] = failure
            log = f"; log in the store: {failure.log}" if failure.log else ""
            self.problems.append(f"{failure}{log}")
            if self._options.fail_fast:
                self._stop()
        for listener in self.listeners:
            listener(state, handle, **news)


def _code_of(failure: StepFailed) -> int:
    return INFRASTRUCTURE_FAILED if failure.cause in INFRASTRUCTURE else FAILED


def _tracking_mode(asked: str | None) -> str:
    try:
        return choose_mode(asked)
    except ValueError as error:
        raise BadRequest(str(error)) from None


def _check_resources(plan: Plan, address: str) -> None:
    """A step that asks for more than a local session has would wait for ever."""
    if address != "local":
        return
    for step in plan.to_run:
        task = step.handle.task
        if task.gpus > 0:
            import torch  # only a plan with GPU steps needs to know

            found = torch.cuda.device_count()
            if task.gpus > found:
                raise BadRequest(f"{task.kind}.gpus: {task.gpus:g} asked for, but this machine has {found}")
        if task.threads > (os.cpu_count() or 1):
            raise BadRequest(
                f"{task.kind}.threads: {task.threads} asked for, but this machine has {os.cpu_count()} CPUs"
            )
