"""Stopping rules: when to give a trial up before its end, by what it has come to at a rung."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from search_spaces.goals import Constraint, Objective, meets
from tasks.component import Component, Placement, kind_of, require_rising
from tasks.measuring.intervals import clopper_pearson
from workflows.figures import Figures


@dataclass(frozen=True)
class Peer:
    """A trial that was told before the one that is judged was asked for."""

    number: int
    """Of the trial."""
    rungs: Mapping[str, Figures]
    """What it had come to at each rung that it reached, by the rung's value as text."""
    figures: Mapping[str, float] | None
    """What it came to in the end; None if it was stopped."""
    on_front: bool
    """Whether no other trial told by then is better, and it meets the constraints."""


class Stopping(Component):
    """A rule that gives trials up at rungs.

    A rung is the trial with one of its fields set lower: a chain of fewer levels, a training that stops sooner. All
    steps of it are steps of the whole trial too, and so it costs nothing but its own measurement.
    """

    single: ClassVar[bool] = True
    """Whether it compares trials by one objective only."""
    paired: ClassVar[bool] = False
    """Whether it compares trials example by example."""

    field: str = Field(min_length=1)
    """Dotted path of the field that a rung sets lower, such as `levels` or `train.stop_at`."""
    rungs: tuple[float | int, ...] = Field(min_length=1)
    """The values it is set to, rising; those that are not below a trial's own are left out."""
    warm_up: int = Field(default=4, ge=1)
    """Trials that must have reached a rung before any is stopped there."""
    audit: Annotated[int, Placement()] = Field(default=0, ge=0)
    """Stopped trials that are run to their end afterwards, to learn how often stopping was wrong."""

    @model_validator(mode="after")
    def _rungs_rise(self) -> Self:
        require_rising("rungs", self.rungs)
        return self

    def check(self, objectives: int) -> None:
        """Finds out whether it can compare by so many objectives, at such rungs.

        Raises:
            ValueError: it cannot.
        """
        path, _, last = self.field.rpartition(".")
        if last == "epochs":
            raise ValueError(
                f"field: {self.field}: a training of fewer epochs is another training, with another schedule; set "
                f"{path + '.' if path else ''}stop_at, which stops the same one after so many steps"
            )
        if self.single and objectives > 1:
            raise ValueError(
                f"{kind_of(type(self))} compares trials by one objective, and here are {objectives}; allowed: dominated"
            )

    def objection(
        self,
        objectives: Sequence[Objective],
        rung: int,
        trial: Figures,
        others: Sequence[Peer],
        planned: Mapping[str, float],
    ) -> str | None:
        """Why the trial should end here.

        Args:
            objectives: what the search is after.
            rung: which of the rungs the trial has reached, counted from zero.
            trial: what it has come to there.
            others: all trials, but failed ones, that were told before this one was asked for. Were later ones among
                them, the decision would depend on which was quicker.
            planned: figures of the finished trial that are known by counting alone, such as its sparsity.

        Returns:
            One line with the figures that decided, or None to let it go on.
        """
        raise NotImplementedError

    def _there(self, rung: int, others: Sequence[Peer]) -> Iterator[tuple[Peer, Figures]]:
        """Those of the others that have reached a rung, and what they had come to."""
        name = str(self.rungs[rung])
        return ((peer, peer.rungs[name]) for peer in others if name in peer.rungs)

    def _place(self, rung: int) -> str:
        """The rung in words."""
        return f"{self.field} {self.rungs[rung]}"


def wrong_stops(
    objectives: Sequence[Objective],
    stopped: Sequence[Mapping[str, float] | None],
    finished: Sequence[Mapping[str, float]],
    constraints: Sequence[Constraint] = (),
) -> dict[str, Any]:
    """How often stopping was wrong: the trial would have added something to the front, or been better than the best.

    That is so if it meets the constraints, and no finished trial that meets them is at least as good in every
    objective. Stopped trials are not compared with each other.

    Args:
        objectives: what the search is after.
        stopped: figures of the stopped trials that were run to their end nevertheless, at least one; None of a trial
            that failed on its way.
        finished: figures of all trials that were not stopped, or of their front.
        constraints: what a trial must meet to count.

    Returns:
        `wrong` stops, `of` how many that were looked at, and the ends `low` and `high` of the exact 95 % interval for
        their rate (Clopper & Pearson 1934).
    """
    met = [figures for figures in finished if meets(figures, constraints)]
    wrong = sum(
        meets(figures, constraints) and not any(_as_good(other, figures, objectives) for other in met)
        for figures in stopped
        if figures is not None
    )
    low, high = clopper_pearson(wrong, len(stopped))
    return {"wrong": wrong, "of": len(stopped), "low": low, "high": high}


def _as_good(figures: Mapping[str, float], other: Mapping[str, float], objectives: Sequence[Objective]) -> bool:
    """Whether the first is at least as good as the second in every objective."""
    return all(
        objective.sign * figures[objective.figure] >= objective.sign * other[objective.figure]
        for objective in objectives
    )
