"""Runs orders on Ray: one task an attempt, never retried by Ray itself."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from cluster.failures import Cause
from cluster.worker import Order, Outcome, run_step


class Executor(Protocol):
    """Something that runs one attempt somewhere; the engine knows no more of Ray than this."""

    def submit(self, order: Order) -> Any:
        """Starts an attempt; the result is for `outcome` and `kill`."""
        ...

    async def outcome(self, running: Any) -> Outcome:
        """Waits for an attempt; a worker's death is an outcome too."""
        ...

    def kill(self, running: Any) -> None:
        """Ends an attempt at once."""
        ...


class RayExecutor:
    """Attempts as Ray tasks."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._run = ray.remote(run_step)

    def submit(self, order: Order) -> Any:
        """Queues the attempt; Ray starts it when CPUs and GPUs are free."""
        task = order.task
        return self._run.options(
            num_cpus=task.threads, num_gpus=task.gpus, max_retries=0, name=f"{task.kind} {order.key[:12]}"
        ).remote(order)

    async def outcome(self, running: Any) -> Outcome:
        """The attempt's outcome; what Ray raises becomes one with a cause."""
        try:
            outcome: Outcome = await running
        except asyncio.CancelledError:
            raise
        except Exception as error:
            return Outcome("failed", cause=self._cause(error), message=_first_line(error))
        return outcome

    def kill(self, running: Any) -> None:
        """Kills the attempt's worker process."""
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


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if "RayTaskError" in type(error).__name__ else (lines[0] if lines else type(error).__name__)
