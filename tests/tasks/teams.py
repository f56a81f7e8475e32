"""Two processes that train together, connected by gloo over a file: real ones, which can be killed."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import torch
from torch import distributed, nn

from tasks.device import settle
from tasks.moment import Moment
from tasks.objectives import Objective
from tasks.objectives.standard import Standard
from tasks.task import Result
from tasks.training import run
from tasks.training.train import Train
from tasks.training.validation import Trial
from tests.tasks.training_toys import Interrupted, Watch, Witness

PATIENCE = 60.0
START = multiprocessing.get_context("forkserver")
START.set_forkserver_preload(["tests.tasks.teams"])


class Raised(Exception):
    """What a process raised, by its name."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(name, message)
        self.name = name
        self.message = message

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


class Pair:
    """Two processes that wait for work to do together."""

    def __init__(self, folder: Path) -> None:
        self._jobs: list[Any] = [START.Queue() for _ in range(2)]
        self._answers: list[Any] = [START.Queue() for _ in range(2)]
        self.processes: list[BaseProcess] = [
            START.Process(target=_serve, args=(rank, str(folder / "meeting"), self._jobs[rank], self._answers[rank]))
            for rank in range(2)
        ]
        for process in self.processes:
            process.start()

    def all(self, job: Callable[..., Any], *given: Any) -> list[Any]:
        """What the job comes to in each process: its result, or what it raised; None of one that died."""
        for jobs in self._jobs:
            jobs.put((job, given))
        return [self._answer(rank) for rank in range(2)]

    def __call__(self, job: Callable[..., Any], *given: Any) -> Any:
        """The result, which both processes agree on."""
        first, second = self.all(job, *given)
        for answer in (first, second):
            if isinstance(answer, Raised):
                raise answer
        assert first == second
        return first

    def close(self) -> None:
        for jobs, process in zip(self._jobs, self.processes, strict=True):
            jobs.put(None)
            process.join(10)
            process.kill()

    def _answer(self, rank: int) -> Any:
        for _ in range(int(PATIENCE)):
            try:
                return self._answers[rank].get(timeout=1)
            except queue.Empty:
                if not self.processes[rank].is_alive():
                    return None
        raise TimeoutError(f"process {rank} does not answer")


def _serve(rank: int, meeting: str, jobs: Any, answers: Any) -> None:
    settle(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    while (job := jobs.get()) is not None:
        torch.manual_seed(rank + 17)
        try:
            answers.put(job[0](*job[1]))
        except BaseException as error:
            answers.put(Raised(type(error).__name__, str(error)))
    distributed.destroy_process_group()


def train(task: Train, inputs: dict[str, Any] | None = None, state: bytes | None = None) -> Result:
    """A training that nobody disturbs."""
    return task.run(Watch(state), **(inputs or {}))


def save(task: Train, saves: int, inputs: dict[str, Any] | None = None) -> tuple[str, bytes | None]:
    """A training that is asked to leave at so many saves; the state that it leaves, in the first process."""
    first = distributed.get_rank() == 0
    watch = Watch(None, saves if first else 1)
    try:
        task.run(watch, **(inputs or {}))
    except Interrupted:
        return "left", watch.state if first else None
    return "ended", None


class Keeps(Watch):
    """A context that keeps every state and goes on."""

    def should_save(self) -> bool:
        return True

    def save(self, state: bytes) -> None:
        self.state = state


def keep(task: Train) -> tuple[str, str, bytes | None]:
    """A training that somebody may kill: what it raised, and the last state that was kept."""
    keeps = Keeps()
    try:
        task.run(keeps)
    except ConnectionError as error:
        return "lost", str(error), keeps.state
    return "ended", "", keeps.state


def witness(task: Train) -> list[Any]:
    """What the objective was given at every step, in this process."""
    Witness.seen.clear()
    task.run(Watch())
    return [(images.numpy(), labels.tolist(), *drawn) for images, labels, *drawn in Witness.seen]


def look_alone(task: Train) -> Result:
    """A training in which only the first process is able to look at the network."""
    before = run.validate, Trial.measure
    if distributed.get_rank():
        run.validate = Trial.measure = _blind  # type: ignore[assignment]
    try:
        return task.run(Watch())
    finally:
        run.validate, Trial.measure = before  # type: ignore[method-assign]


def _blind(*given: Any) -> Any:
    raise AssertionError("looked")


class Troubled(Objective):
    """Cross-entropy that meets with trouble at one step of one process, unless a file says that it has."""

    kind: Literal["toy-troubled"] = "toy-troubled"
    at: int
    flag: str
    rank: int = 1
    number: int = int(signal.SIGKILL)
    """The signal that the process sends itself; 0 for an error instead."""
    pause: float = 0
    """Seconds that every step takes."""

    def loss(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, moment: Moment) -> torch.Tensor:
        time.sleep(self.pause)
        if distributed.get_rank() == self.rank and moment.step == self.at and not Path(self.flag).exists():
            Path(self.flag).touch()
            if not self.number:
                raise ValueError("no good")
            os.kill(os.getpid(), self.number)
        return Standard().loss(model, images, labels, moment)


class Astray(Objective):
    """Cross-entropy that moves a weight of the second process by a hair at a step."""

    kind: Literal["toy-astray"] = "toy-astray"
    at: int

    def loss(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, moment: Moment) -> torch.Tensor:
        if distributed.get_rank() == 1 and moment.step == self.at:
            with torch.no_grad():
                next(model.parameters()).view(-1)[0] += 1e-6
        return Standard().loss(model, images, labels, moment)
