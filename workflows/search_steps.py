"""The steps that a search itself publishes: what was asked, what became of it, and what it comes to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from safetensors.torch import load, save

from cluster.flow import Asked, Handle
from cluster.ledger import Published
from cluster.runs import Finished
from tasks.component import members
from tasks.task import Result, Task
from workflows.figures import Figures

OUTCOMES = "outcomes.safetensors"


@dataclass(frozen=True)
class Note:
    """A step of the driver's own: it puts down what the driver found out, under a name that says what that is.

    That each is a step makes the ledger the whole truth about a study: whoever resumes it finds what was asked and
    told, a second driver publishes nothing twice, and every view of it can be made anew.
    """

    kind: ClassVar[str]
    threads: ClassVar[int] = 0
    gpus: ClassVar[float] = 0.0

    study: str
    """The study's key: its recipe without the budget."""
    number: int
    """Of the trial; of trials told, for what closes the study."""
    make: Callable[[], Result] = field(repr=False, compare=False)
    """Called when the note is not there yet."""

    def identity(self) -> dict[str, Any]:
        """Study and number, and the versions of tasks: values that an earlier version found are told anew."""
        versions = {kind: task.version for kind, task in members(Task).items() if task.version != 1}
        return {"kind": self.kind, "study": self.study, "number": self.number, "versions": versions}

    def run(self, context: Any, **inputs: Any) -> Result:
        """What the driver found out."""
        return self.make()


@dataclass
class Found(Result):
    """What the driver found out, and the steps that it rests on: `gc` keeps them, and a number leads to them."""

    sources: dict[str, str] = field(default_factory=dict)
    """Keys, by a name for each."""


class Ask(Note):
    """The parameters of a trial, as the sampler suggested them; metrics: `parameters`."""

    kind = "ask"


class Trial(Note):
    """What became of a trial.

    Metrics: `number`, `parameters`, `state` (complete, stopped, failed), `values` (of the objectives, if complete),
    `figures` (if complete), `rungs` (figures at each), `stopped_at` and `because`, or `cause` and `message`,
    `sample_steps` (its own), `steps` (sample-steps of each of its steps, by key).
    File: `outcomes.safetensors`, which examples were right at each rung and at the end, as `RUNG/FIGURE`.
    """

    kind = "trial"


class Front(Note):
    """What a study comes to: its front, measured on test data; what sharing saved; how often a stop was wrong."""

    kind = "front"


def outcomes_to_bytes(rungs: Mapping[str, Figures]) -> bytes:
    """Outcomes of every rung, as `RUNG/FIGURE`."""
    return save(
        {
            f"{rung}/{name}": right.to(torch.uint8)
            for rung, figures in rungs.items()
            for name, right in figures.outcomes.items()
        }
    )


@dataclass(frozen=True)
class Told:
    """What became of a trial, as a search remembers it."""

    metrics: Mapping[str, Any]
    """As the step `trial` puts it down."""
    rungs: Mapping[str, Figures]
    """What it had come to at each rung, with the outcomes behind the figures."""

    @classmethod
    def of(cls, trial: Published) -> Told:
        """From the finished step."""
        rights = load(trial.read(OUTCOMES)) if OUTCOMES in trial.manifest["files"] else {}
        outcomes: dict[str, dict[str, torch.Tensor]] = {}
        for name, right in rights.items():
            rung, _, figure = name.partition("/")
            outcomes.setdefault(rung, {})[figure] = right.bool()
        rungs = trial.metrics["rungs"]
        return cls(trial.metrics, {rung: Figures(rungs[rung], outcomes.get(rung, {})) for rung in rungs})

    @property
    def state(self) -> str:
        """complete, stopped or failed."""
        return str(self.metrics["state"])


async def finished_of(asked: Asked) -> list[Finished]:
    """The steps that were asked for, those that failed aside, each where it was asked for first.

    Waits for all of them: what a workflow no longer waits for, since the steps after it were stored, counts too.
    """
    places: dict[str, tuple[Mapping[str, Any], Handle]] = {}
    for at, handle in asked:
        places.setdefault(handle.key, (at, handle))
    steps = await asyncio.gather(*(handle.published() for _, handle in places.values()), return_exceptions=True)
    found = zip(places.values(), steps, strict=True)
    return [Finished(at, step) for (at, _), step in found if isinstance(step, Published)]


def computed(trials: Iterable[Mapping[str, Any]]) -> int:
    """Sample-steps of all steps of these trials, each counted once."""
    steps: dict[str, int] = {}
    for trial in trials:
        steps |= trial["steps"]
    return sum(steps.values())
