"""Out when another is better in everything, beyond chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar, Literal

from pydantic import Field

from search_spaces.goals import Objective
from tasks.measuring.compare import adjusted_wald, apart_on
from workflows.figures import Figures
from workflows.stopping import Peer, Stopping


class Dominated(Stopping):
    """Stops a trial when one on the front was better at the same rung in every objective, beyond chance (ours).

    Accuracies are compared example by example: the upper end of the one-sided interval for the trial's accuracy minus
    the other's (Bonett & Price 2012, as in `compare`) must lie below zero, or below `-margin`. All bounds of one
    decision hold together with `confidence` (Bonferroni, over accuracies and over those on the front that are not
    behind in anything else). What is not an accuracy (sparsity, size, sample-steps) must be no better than the other's:
    in the end where that is known beforehand by counting, else at the rung.

    What the bounds do not know: they are about these networks on other examples. Training with another seed gives other
    accuracies, more so than other examples do once there are thousands of them, and then `margin` should be about the
    difference that two seeds make. Where accuracies of equal trainings deviate by 0.004 and a tenth of the examples
    differ, one rival stops 8 % of equal trials on 1000 examples and 21 % on 10 000; with a margin of 0.01 it stops 1 %
    (simulated). Those on the front are there by their accuracies on these very examples, the lucky among them. A trial
    is judged at every rung, so its chances to be stopped wrongly add up. And examples of several replicates count as so
    many examples, which makes the interval a little too narrow. An `audit` measures what comes of all that.
    """

    single: ClassVar[bool] = False
    paired: ClassVar[bool] = True

    kind: Literal["dominated"] = "dominated"
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """With which no trial is stopped at a rung that is as good as all others there."""
    margin: float = Field(default=0, ge=0, lt=1)
    """By how much accuracies, as shares, must be worse: what another seed may do."""

    def objection(
        self,
        objectives: Sequence[Objective],
        rung: int,
        trial: Figures,
        others: Sequence[Peer],
        planned: Mapping[str, float],
    ) -> str | None:
        """Names the better trial, and its figures.

        Raises:
            ValueError: outcomes at the rung are of different examples.
        """
        there = list(self._there(rung, others))
        if len(there) < self.warm_up:
            return None
        accuracies = [objective for objective in objectives if objective.figure in trial.outcomes]
        counted = [objective for objective in objectives if objective.figure not in trial.outcomes]
        rivals = []
        for peer, figures in there:
            pairs = [_counted(objective, trial, figures, peer, planned) for objective in counted]
            behind = [pair.behind for pair in pairs]
            if peer.on_front and min(behind, default=0) >= 0 and (accuracies or max(behind, default=0) > 0):
                rivals.append((peer, figures, pairs))
        quantile = NormalDist().inv_cdf(1 - (1 - self.confidence) / max(1, len(rivals) * len(accuracies)))
        for peer, figures, pairs in rivals:
            bounds = [_accuracy(objective, trial, figures, quantile) for objective in accuracies]
            if all(bound.behind > self.margin for bound in bounds):
                return f"trial {peer.number} was better at {self._place(rung)}: {', '.join(map(str, bounds + pairs))}"
        return None


@dataclass(frozen=True)
class _Pair:
    """One figure of two trials."""

    figure: str
    own: float
    others: float
    behind: float
    """How much worse the trial is at least; negative where it may be better."""
    note: str = ""

    def __str__(self) -> str:
        return f"{self.figure} {self.own:.4g} against {self.others:.4g}{self.note}"


def _counted(objective: Objective, trial: Figures, figures: Figures, peer: Peer, planned: Mapping[str, float]) -> _Pair:
    """A figure that is no accuracy: that of the finished trials if both are known, else at the rung."""
    name = objective.figure
    if name in planned and peer.figures is not None:
        own, others, note = planned[name], peer.figures[name], " in the end"
    else:
        own, others, note = trial.values[name], figures.values[name], ""
    return _Pair(name, own, others, objective.sign * (others - own), note)


def _accuracy(objective: Objective, trial: Figures, figures: Figures, quantile: float) -> _Pair:
    """An accuracy at the rung, and how much worse it is at least."""
    name = objective.figure
    own, others = trial.outcomes[name], figures.outcomes[name]
    if own.shape != others.shape:
        raise ValueError(
            f"stopping: {name} was measured on {len(own)} and on {len(others)} examples; trials can be compared on the "
            "same examples only"
        )
    worse, better = (own, others) if objective.sign > 0 else (others, own)
    low, _ = adjusted_wald(*apart_on(worse, better), len(own), quantile)
    note = f" (worse by {low:.3f} at least)"
    return _Pair(name, trial.values[name], figures.values[name], low, note)
