"""Starts a recipe: plan, Ray session, engine, tracking, closing report."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cluster.engine import Engine, Stopped
from cluster.executor import RayExecutor
from cluster.failures import INFRASTRUCTURE, StepFailed
from cluster.flow import Flow, Handle
from cluster.ledger import Published
from cluster.owner import Owner
from cluster.placement import Machine, parse_rules
from cluster.plan import Plan, make_plan
from cluster.profiles import Placing, Profiles
from cluster.runs import EventLog, Run, finished_steps, write_plan
from cluster.session import ClusterUnreachable, abandon, check_address, session
from cluster.step import key_of
from cluster.store import Store, StoreError
from cluster.tracking import Tracker, choose_mode
from cluster.worker import Terms
from workflows import Workflow
from workflows.command.check import UNCONDITIONAL
from workflows.command.exit_codes import Exit
from workflows.command.live import LiveView
from workflows.command.options import DEFAULT_REJOIN, DEFAULT_WAIT_FOR_NODES
from workflows.command.placing import check_resources, check_rules, idle_rules, refuse_impossible, rules_of
from workflows.command.recipe import BadRequest, Recipe
from workflows.command.signals import STOPS, run_with_signals
from workflows.mistakes import lines_of
from workflows.report import Report

if TYPE_CHECKING:
    from workflows.command.study_view import StudyView

ECHO = 1.0
"""Seconds after a signal in which another one is the same: a terminal and a launcher may both pass it on."""
REQUESTS = 64
"""Requests to the store under way at once: asyncio's own few threads would queue before a distant store."""


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
    place: Sequence[str] = ()
    """What steps need of a node, as `[KIND:]NAME=VALUE`."""
    wait_for_nodes: float = DEFAULT_WAIT_FOR_NODES
    """Seconds for which a step waits when no node of a cluster can run it; those of a local session never change."""
    rejoin: float = DEFAULT_REJOIN
    """Minutes to wait for a cluster that was lost."""
    study: str | None = None
    """Where a search shows itself as an Optuna study; in the folder of its report unless given."""


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


def open_store(url: str, to_run: bool = False) -> Store:
    """The store at a URL.

    Args:
        url: of the store.
        to_run: whether steps will be run on it; then it is tried out with a write and a read. Whoever only looks, or
            makes room, can do so on a full disk too.

    Raises:
        BadRequest: it is no store, none that may be written, one that ignores conditional puts, or a server that does
            not answer.
        StoreError: its disk is full.
    """
    try:
        store = Store.open(url)
    except (StoreError, ValueError) as error:
        reason = str(error)
        raise BadRequest(reason if reason.startswith("--store") else f"--store {url}: {reason}") from None
    if not to_run:
        return store
    probe, content = f"probe/{uuid.uuid4().hex}", os.urandom(8)
    try:
        if not store.create(probe, content) or store.get(probe) != content:
            raise StoreError("what was written cannot be read back")
        twice = store.create(probe, os.urandom(8))
        store.delete([probe])
    except StoreError as error:
        kind = BadRequest if store.is_remote else StoreError
        raise kind(f"--store {url}: {error}") from None
    if twice:
        raise BadRequest(f"--store {url}: it ignores conditional puts, so leases mean nothing there: {UNCONDITIONAL}")
    return store


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
    tracking = _tracking_mode(options.wandb)
    require_address(options.address)
    store = open_store(options.store, to_run=True)
    plan = plan_of(recipe, store, options.verify)
    planned = [step.handle.task for step in plan.to_run]
    rules = rules_of(options.place, planned)
    placing = Placing(rules)
    check_rules(placing, planned)
    for line in idle_rules(rules, planned):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    check_resources(plan, options.address, options.workers, placing)
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
    code, problems = Exit.DONE, list[str]()
    if plan.failure is not None and not plan.to_run:
        code, problems = _code_of(plan.failure), [str(plan.failure)]
    if plan.to_run:
        with ExitStack() as stack:
            with console.status("starting Ray" if options.address == "local" else f"joining {options.address}"):
                ray = stack.enter_context(session(options.address, cpus=options.workers))
            stop_if_asked()
            if options.address == "local":
                refuse_impossible(placing, planned, [Machine.of(node) for node in ray.nodes()])
            code, problems = _run_on_ray(ray, recipe, plan, run, store, options, tracking, console, study)
    if study is not None:
        problems += study.end()
    ended = Ended(code, run_id, problems)
    try:
        ended.report = recipe.workflow.report(finished_steps(store, run_id))
        ended.files = ended.report.write(folder)
    except (StoreError, OSError) as error:
        reason = f"--out {folder}: {error.strerror}" if isinstance(error, OSError) else str(error)
        ended.problems.append(f"no report was written: {reason}; the results are in the store")
        ended.code = Exit.INFRASTRUCTURE if code in (Exit.DONE, Exit.FAILED) else code
    return ended


def _run_on_ray(
    ray: Any,
    recipe: Recipe,
    plan: Plan,
    run: Run,
    store: Store,
    options: Options,
    tracking: str,
    console: Console,
    study: StudyView | None,
) -> tuple[Exit, list[str]]:
    driver = _Driver(recipe, store, RayExecutor(ray), options, run)
    if study is not None:
        driver.listeners.append(study.tell)
    tracker = Tracker.start(store.url, run.id, tracking, options.out / run.id)
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 1), resources.get("GPU", 0)
    with LiveView(console, store, plan, cpus, gpus, recipe.workflow.so_far) as view:
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


class _Driver:
    """One process's part in a run: it may be killed at any moment and started again."""

    def __init__(self, recipe: Recipe, store: Store, executor: Any, options: Options, run: Run) -> None:
        self._name, self._workflow = recipe.name, recipe.workflow
        self._options = options
        self._engine = Engine(
            store,
            executor,
            self._tell,
            Terms.on(store, options.checkpoint),
            verify=options.verify,
            placing=Placing(parse_rules(options.place), Profiles(store), executor.machines),
            wait_for_nodes=options.wait_for_nodes if options.address != "local" else 0,
        )
        self._log = EventLog(store, run.id, self._engine.driver)
        self._signal: signal.Signals | None = None
        self._heard: float | None = None
        self._main: asyncio.Task[Any] | None = None
        self._failures: dict[str, StepFailed] = {}
        self._stopper: asyncio.Task[None] | None = None
        self.listeners: list[Callable[..., None]] = []
        self.say: Callable[[str], None] = lambda line: None
        self.problems: list[str] = []
        self.again: signal.Signals | None = None
        """The signal that asked a second time."""
        self.lost = False
        """Whether the cluster answers no more."""
        self.found: dict[str, float] = {}
        """CPUs and GPUs of the cluster, recorded for whoever looks at the run from elsewhere."""

    async def drive(self) -> Exit:
        """Runs the workflow and says how it ended, as an exit code."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(REQUESTS, thread_name_prefix="store"))
        for name in STOPS:
            loop.add_signal_handler(name, self._hear, name)
        self._main = asyncio.current_task()
        self._log.write("run", state="started", driver=self._engine.driver, owner=Owner.me().to_json(), **self.found)
        try:
            await self._workflow.run(Flow(self._engine))
            code = Exit.DONE
        except Stopped:
            code = {signal.SIGINT: Exit.INTERRUPTED, signal.SIGTERM: Exit.PREEMPTED, None: Exit.FAILED}[self._signal]
        except StepFailed as failure:
            code = _code_of(failure)
            if failure.key not in self._failures:  # one of an earlier driver's
                self.problems.append(str(failure))
        except (StoreError, ClusterUnreachable) as error:
            self.problems.append(str(error))
            self.lost = isinstance(error, ClusterUnreachable)
            code = Exit.INFRASTRUCTURE
        except ValueError as error:  # what the workflow met only now, such as results that do not fit each other
            self.problems.extend(f"recipe {self._name}: {line}" for line in lines_of(error))
            code = Exit.FAILED
            self._stop()
        if self._stopper is not None:
            await self._stopper
        if code in (Exit.FAILED, Exit.INFRASTRUCTURE):  # the graver of what happened
            code = max([code, *map(_code_of, self._failures.values())])
        self._log.write("run", state="ended", driver=self._engine.driver, code=code)
        try:
            await asyncio.to_thread(self._log.close)
        except StoreError as error:
            self.problems.append(f"store: {error}")
            return Exit.INFRASTRUCTURE
        return code

    def _hear(self, number: signal.Signals) -> None:
        """Stops at the first signal; at a second one kills what runs, and ends at once."""
        if self._heard is None:
            self._heard = time.monotonic()
            self._stop(number)
        elif self._main is not None and time.monotonic() - self._heard > ECHO:
            self.again = number
            self._engine.kill()
            # Requests that are under way belong to the pool before this one, which nobody waits for.
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
            self._main.cancel()

    def _stop(self, number: signal.Signals | None = None) -> None:
        if self._stopper is None:
            self._signal = number
            self.say("stopping: the steps that are running save their state; once more ends them at once")
            self._stopper = asyncio.ensure_future(self._engine.stop())

    def _tell(self, state: str, handle: Handle, **news: Any) -> None:
        shown = {name: value for name, value in news.items() if name != "published"}
        if state == "published":
            shown |= _cost(news["published"])
        if state != "asked":
            self._log.write("step", state=state, key=handle.key, kind=handle.task.kind, at=dict(handle.at), **shown)
        for listener in self.listeners:
            listener(state, handle, **news)
        if state == "failed":
            failure = StepFailed(handle.key, str(handle), news["cause"], news["message"], news["log"])
            self._failures[handle.key] = failure
            log = f"; log in the store: {failure.log}" if failure.log else ""
            self.problems.append(f"{failure}{log}")
            if self._options.fail_fast:
                self._stop()


def _cost(published: Published) -> dict[str, float]:
    """What a step took, for whoever looks at the events alone."""
    cost = {"seconds": published.manifest["seconds"]}
    if "sample_steps" in published.metrics:
        cost["sample_steps"] = published.metrics["sample_steps"]
    return cost


def _study_view(workflow: Workflow, run_id: str, url: str | None, folder: Path, plan: Plan) -> StudyView | None:
    """What shows a search as an Optuna study."""
    from workflows.search import Search

    if not isinstance(workflow, Search):
        return None
    from workflows.command.study_view import StudyView  # a database's driver, which nothing else needs

    view = StudyView(workflow, run_id, url, folder)
    view.begin(step.published for step in plan.stored if step.published is not None)
    return view


def _code_of(failure: StepFailed) -> Exit:
    return Exit.INFRASTRUCTURE if failure.cause in INFRASTRUCTURE else Exit.FAILED


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
