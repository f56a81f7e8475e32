"""The steps that a search itself publishes: what was asked, what became of it, and what it comes to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors.torch import load, save

from cluster.failures import StepFailed
from cluster.flow import Asked, Handle
from cluster.ledger import Published
from cluster.runs import Finished
from tasks.task import Result
from workflows.figures import Figures

if TYPE_CHECKING:
    from workflows.search import Search

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

    search: Search
    """That it belongs to."""
    number: int
    """Of the trial; of trials told, for what closes the study."""
    make: Callable[[], Result] = field(repr=False, compare=False)
    """Called when the note is not there yet."""

    def identity(self) -> dict[str, Any]:
        """Study and number, and what it ran: what an earlier version of the code found is told anew."""
        return {"kind": self.kind, "study": self.search.key, "code": self.search.code, "number": self.number}

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
    """What a study comes to: its front, measured on test data, and how often a stop was wrong.

    Metrics: `front` (of each trial number, parameters, figures, and `test` or why it `failed` there), `audit`.
    """

    kind = "front"

    def identity(self) -> dict[str, Any]:
        """With the number of stopped trials that are run to their end."""
        audit = self.search.stopping.audit if self.search.stopping is not None else 0
        return {**super().identity(), "audit": audit}


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
        rungs = dict(sorted(trial.metrics["rungs"].items(), key=lambda rung: float(rung[0])))
        return cls(trial.metrics, {rung: Figures(rungs[rung], outcomes.get(rung, {})) for rung in rungs})

    @property
    def state(self) -> str:
        """complete, stopped or failed."""
        return str(self.metrics["state"])


async def finished_of(asked: Asked) -> list[Finished]:
    """The steps that were asked for, each where it was asked for first.

    Waits for all of them: what a workflow no longer waits for, since the steps after it were stored, counts too.

    Raises:
        StepFailed: one of them failed.
    """
    places: dict[str, tuple[Mapping[str, Any], Handle]] = {}
    for at, handle in asked:
        places.setdefault(handle.key, (at, handle))
    steps = await asyncio.gather(*(handle.published() for _, handle in places.values()))
    return [Finished(at, step) for (at, _), step in zip(places.values(), steps, strict=True)]


async def own_steps(asked: Asked) -> dict[str, int]:
    """What a trial cost by itself: the sample-steps of each of its steps, those that failed aside.

    A step that others went on from costs nothing of its own: theirs count from their beginning.
    """
    handles = {handle.key: handle for _, handle in asked}
    begun = {handle.prefix.key for handle in handles.values() if handle.prefix is not None}
    steps = await asyncio.gather(*(handle.published() for handle in handles.values()), return_exceptions=True)
    costs: dict[str, int] = {}
    for key, step in zip(handles, steps, strict=True):
        if isinstance(step, Published):
            costs[key] = 0 if key in begun else int(step.metrics.get("sample_steps", 0))
        elif not isinstance(step, StepFailed):
            raise step
    return costs


class Spending:
    """Sample-steps of all steps of the trials told, each counted once."""

    IDLE = 100
    """Trials in a row that cost nothing new after which a budget of sample-steps alone would never be spent."""

    def __init__(self) -> None:
        self._steps: dict[str, int] = {}
        self._total = 0
        self._idle = 0

    def add(self, steps: Mapping[str, int]) -> None:
        """A trial's."""
        before = self._total
        for key, cost in steps.items():
            self._total += max(cost - self._steps.get(key, 0), 0)
            self._steps[key] = max(cost, self._steps.get(key, 0))
        self._idle = 0 if self._total > before else self._idle + 1

    def reaches(self, budget: int) -> bool:
        """Whether so much is spent, or there is nothing left to spend it on."""
        return self._total >= budget or self._idle >= self.IDLE
