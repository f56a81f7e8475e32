"""Better than half of them, or out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Literal

from search_spaces.goals import Objective
from workflows.figures import Figures
from workflows.stopping import Peer, Stopping


class Median(Stopping):
    """Stops a trial that is worse than the median of the others at the same rung (Golovin et al. 2017, section 3.2.2).

    Google Vizier compares the best value that a trial has come to with the median of the others' running averages.
    Here figures are those of networks at the rung, and they alone are compared: earlier rungs are of networks that were
    trained for less or pruned less, and say less about the end.
    """

    kind: Literal["median"] = "median"

    def objection(
        self,
        objectives: Sequence[Objective],
        rung: int,
        trial: Figures,
        others: Sequence[Peer],
        planned: Mapping[str, float],
    ) -> str | None:
        """Names the median, if the trial is worse."""
        (objective,) = objectives
        known = [figures.values[objective.figure] for _, figures in self._there(rung, others)]
        if len(known) < self.warm_up:
            return None
        own, middle = trial.values[objective.figure], median(known)
        if objective.sign * own >= objective.sign * middle:
            return None
        return (
            f"{objective.figure} is {own:.4g} at {self._place(rung)}, and the median of {len(known)} trials there is "
            f"{middle:.4g}"
        )
