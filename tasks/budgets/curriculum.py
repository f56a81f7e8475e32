"""The budget that grows in stages."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from tasks.budgets import Budget
from tasks.moment import Moment


class Curriculum(Budget):
    """A radius that grows in equal stages, the easy ones first (curriculum training of Kinfu & Vidal 2022).

    A reconstruction from the abstract: the radius grows with the iterations; that it does so in stages of equal length,
    each higher than the one before by the same amount, is chosen here. Stage s of S, counted from zero, has the radius
    `epsilon * (s + 1) / S`, so that no step goes without an attack.
    """

    grows: ClassVar[bool] = True

    kind: Literal["curriculum"] = "curriculum"
    stages: int = Field(default=5, ge=1)
    """Radii in all, the largest included."""
    over: float = Field(default=0.6, gt=0, le=1)
    """Share of the training that is cut into stages; the last goes on to the end.

    As for `ramp`, so that the two can be compared; the largest radius then has a good half of the training.
    """

    def radii(self, epsilon: float, count: int, moment: Moment, memory: nn.Module) -> float:
        """The radius of this step's stage, the same for all images."""
        stage = min(int(moment.step * self.stages / (self.over * moment.steps)), self.stages - 1)
        return epsilon * ((stage + 1) / self.stages)
