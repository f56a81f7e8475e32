"""The best share of them goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from search_spaces.goals import Objective
from workflows.figures import Figures
from workflows.stopping import Peer, Stopping


class Halving(Stopping):
    """Lets the best 1 / `reduction` of the trials at a rung go on (Li et al. 2020, asynchronous successive halving).

    The paper's algorithm pauses a trial at a rung, and promotes it when enough worse ones have come there. This is the
    variant that stops: a trial that is not among the best when it comes to the rung ends there. It keeps too many at
    first, and may stop one that would have been promoted later. Rungs are usually spaced by factors of `reduction`.
    """

    kind: Literal["halving"] = "halving"
    reduction: int = Field(default=3, ge=2)
    """One of so many goes on: eta in the paper."""

    def objection(
        self,
        objectives: Sequence[Objective],
        rung: int,
        trial: Figures,
        others: Sequence[Peer],
        planned: Mapping[str, float],
    ) -> str | None:
        """Names the trial's place, if it is not among the best; of equals all go on."""
        (objective,) = objectives
        known = [figures.values[objective.figure] for _, figures in self._there(rung, others)]
        if len(known) < self.warm_up:
            return None
        own = trial.values[objective.figure]
        better = sum(objective.sign * value > objective.sign * own for value in known)
        kept = max(1, (len(known) + 1) // self.reduction)
        if better < kept:
            return None
        return (
            f"{objective.figure} is {own:.4g} at {self._place(rung)}, number {better + 1} of {len(known) + 1} trials "
            f"there, and the best {kept} go on"
        )
