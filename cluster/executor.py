"""Runs orders on Ray: one task an attempt, never retried by Ray itself."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cluster.failures import Cause, first_line
from cluster.group import free_orphans, run_group
from cluster.order import Order, Outcome
from cluster.placement import GPU_TYPE, Machine
from cluster.session import ClusterUnreachable
from cluster.worker import run_step

PATIENCE = 40.0
"""Seconds of silence after which Ray's head is given up; at 60 Ray itself would end this process without a word."""

NODE_ID = "ray.io/node-id"
"""The label by which Ray names each node."""
STUCK = 60.0
"""Seconds for which a node that died is avoided by name. Ray may ask it for a worker for half a minute, and meanwhile
asks nobody else for what needs the same; with a label of its own an attempt is another sort to Ray."""


class RayExecutor:
    """Attempts as Ray tasks."""

    def __init__(self, ray: Any, patience: float = PATIENCE) -> None:
        self._ray = ray
        self._run = ray.remote(_run_on_node)
        # A process that has used one GPU cannot change to another, and keeps its memory: it is not used again.
        self._run_once = ray.remote(max_calls=1)(_run_on_node)
        self._run_group = ray.remote(run_group)
        self._patience = patience
        self._head: _Head | None = None
        self._lost: asyncio.Task[str] | None = None

    def submit(self, order: Order) -> Any:
        """Queues the attempt; Ray starts it when a node has room for it. What needs no CPU runs here, in a thread.

        Its name is its kind alone: Ray's driver keeps metrics for every name for ever, kilobytes each.
        """
        task = order.task
        if self._head is None:
            self._head = _Head(self._patience / 20)
        if task.threads == 0:
            return asyncio.get_running_loop().run_in_executor(None, run_step, order)
        if order.needs.processes > 1:  # which take what they need themselves; this one waits for them
            self._head.has_groups = True
            return self._run_group.options(num_cpus=0, max_retries=0, name=task.kind).remote(order)
        run = self._run_once if order.needs.gpus else self._run
        options = order.needs.options()
        if died := self._head.died:
            elsewhere = {NODE_ID: f"!in({','.join(sorted(died))})"}
            options["label_selector"] = elsewhere | options.get("label_selector", {})
        return run.options(**options, max_retries=0, name=task.kind).remote(order)

    async def outcome(self, running: Any) -> Outcome:
        """The attempt's outcome; what Ray raises becomes one with a cause.

        Raises:
            ClusterUnreachable: Ray's head, or this machine's part of it, is gone.
        """
        if self._lost is None:
            self._lost = asyncio.ensure_future(self._until_lost())
        waiting: asyncio.Future[Outcome] = asyncio.ensure_future(running)
        try:
            either: set[asyncio.Future[Any]] = {waiting, self._lost}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise ClusterUnreachable(self._lost.result())
            return waiting.result()
        except self._ray.exceptions.LocalRayletDiedError:
            raise ClusterUnreachable("Ray's part on this machine is gone: no step can be started") from None
        except (asyncio.CancelledError, ClusterUnreachable):
            raise
        except Exception as error:
            return Outcome("failed", cause=self._cause(error), message=_reason(error))
        finally:
            waiting.cancel()

    async def _until_lost(self) -> str:
        """Waits until Ray's head has been silent for too long, and says so."""
        while self._head is not None and self._head.silence() < self._patience:
            await asyncio.sleep(self._patience / 20)
        address = self._ray.get_runtime_context().gcs_address
        return f"Ray's head at {address} has not answered for {self._patience:g} s"

    def draining(self) -> Collection[str]:
        """The nodes that are being drained, as of the last answer of Ray's head."""
        return self._head.draining if self._head is not None else ()

    def machines(self) -> Sequence[Machine]:
        """The nodes that take new attempts, as of the last answer of Ray's head; empty until it has answered once."""
        return self._head.machines if self._head is not None else ()

    def kill(self, running: Any) -> None:
        """Kills the attempt's worker process."""
        if isinstance(running, asyncio.Future):  # a thread of this process: it is done in a moment
            return
        done, _ = self._ray.wait([running], timeout=0)
        if not done:  # Ray aborts this process when a task is cancelled that has come to its end just now
            self._ray.cancel(running, force=True)

    def _cause(self, error: Exception) -> Cause:
        known = self._ray.exceptions
        if isinstance(error, known.OutOfMemoryError):
            return "oom"
        if isinstance(error, known.TaskCancelledError):
            return "preempted"
        if isinstance(error, known.RayTaskError):  # raised outside `run_step`: the worker cannot import the task
            return "user"
        return "node"


class _Head:
    """Asks Ray's head again and again, in a thread: a frozen one accepts connections and never answers."""

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._heard = time.monotonic()
        self.draining: Collection[str] = ()
        self.machines: Sequence[Machine] = ()
        self.died: Mapping[str, float] = {}
        """The nodes that died of late, and when that was seen."""
        self._alive: Collection[str] = ()
        self.has_groups = False
        """Whether steps in several processes were asked for: only they leave something behind."""
        threading.Thread(target=self._ask_on, name="head", daemon=True).start()

    def silence(self) -> float:
        """Seconds since the last answer."""
        return time.monotonic() - self._heard

    def _ask_on(self) -> None:
        from ray._private import state, worker

        while worker.global_worker.connected:
            with contextlib.suppress(Exception):  # whatever Ray raises: there was no answer
                worker.global_worker.gcs_client.internal_kv_exists(b"hedgerow", namespace=b"hedgerow", timeout=5)
                self.draining = frozenset(state.state.get_draining_nodes())
                alive = [node for node in state.state.node_table() if node["Alive"]]
                self.machines = [Machine.of(node) for node in alive if node["NodeID"] not in self.draining]
                self._note_deaths({node["NodeID"] for node in alive})
                self._heard = time.monotonic()
                if self.has_groups:
                    free_orphans()
            time.sleep(self._pause)

    def _note_deaths(self, alive: Collection[str]) -> None:
        now = time.monotonic()
        died = {**dict.fromkeys(set(self._alive) - set(alive), now), **self.died}
        self.died = {node: since for node, since in died.items() if node not in alive and now - since < STUCK}
        self._alive = alive


def _run_on_node(order: Order) -> Outcome:
    import ray

    here = ray.get_runtime_context()
    return run_step(order, here.get_node_id(), here.get_node_labels().get(GPU_TYPE, ""))


def _reason(error: Exception) -> str:
    """What Ray says of a failure, without its advice about tools of its own."""
    if "RayTaskError" in type(error).__name__:
        return str(error).strip().splitlines()[-1].strip()
    return first_line(error).partition(". ")[0]
