"""Drives a run: a workflow through the engine, what is told of it, and the signals that stop it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cluster.engine import Engine, Stopped
from cluster.failures import INFRASTRUCTURE, StepFailed
from cluster.flow import Flow, Handle
from cluster.ledger import Published
from cluster.order import Terms
from cluster.owner import Owner
from cluster.placement import Rule
from cluster.profiles import Placing, Profiles
from cluster.runs import EventLog, Run
from cluster.session import ClusterUnreachable
from cluster.store import Store, StoreError
from workflows.command.exit_codes import Exit
from workflows.command.options import Options
from workflows.command.recipe import Recipe
from workflows.command.signals import STOPS
from workflows.mistakes import lines_of

ECHO = 1.0
"""Seconds after a signal in which another one is the same: a terminal and a launcher may both pass it on."""
BY_SIGNAL = {signal.SIGINT: Exit.INTERRUPTED, signal.SIGTERM: Exit.PREEMPTED}
REQUESTS = 64
"""Requests to the store under way at once: asyncio's own few threads would queue before a distant store."""


class Driver:
    """One process's part in a run: it may be killed at any moment and started again."""

    def __init__(
        self, recipe: Recipe, store: Store, executor: Any, options: Options, run: Run, rules: Sequence[Rule] = ()
    ) -> None:
        """Prepares it; `drive` begins.

        Args:
            recipe: what to run.
            store: that keeps results.
            executor: where steps run.
            options: how and where, as they were asked for.
            run: what all this is recorded in.
            rules: what steps need of a node.
        """
        self._name, self._workflow = recipe.name, recipe.workflow
        self._options = options
        self._engine = Engine(
            store,
            executor,
            self._tell,
            Terms.on(store, options.checkpoint),
            verify=options.verify,
            placing=Placing(rules, Profiles(store), executor.machines),
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
            code = Exit.FAILED if self._signal is None else BY_SIGNAL[self._signal]
        except StepFailed as failure:
            code = code_of(failure)
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
            code = max([code, *map(code_of, self._failures.values())])
        code = self._as_asked(code)
        waits = {"waits": 60 * self._options.rejoin} if self.lost and self._options.rejoins(code) else {}
        self._log.write("run", state="ended", driver=self._engine.driver, code=code, **waits)
        try:
            await asyncio.to_thread(self._log.close)
        except StoreError as error:
            self.problems.append(f"store: {error}")
            return self._as_asked(Exit.INFRASTRUCTURE)
        return code

    def _as_asked(self, code: Exit) -> Exit:
        """The code of the end: who was asked to stop has stopped, also where the cluster or the store went first."""
        return code if self._signal is None or code != Exit.INFRASTRUCTURE else BY_SIGNAL[self._signal]

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


def code_of(failure: StepFailed) -> Exit:
    """How a run ends that cannot go on because of this."""
    return Exit.INFRASTRUCTURE if failure.cause in INFRASTRUCTURE else Exit.FAILED


def _cost(published: Published) -> dict[str, float]:
    """What a step took, for whoever looks at the events alone."""
    cost = {"seconds": published.manifest["seconds"]}
    if "sample_steps" in published.metrics:
        cost["sample_steps"] = published.metrics["sample_steps"]
    return cost
