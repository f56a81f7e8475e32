"""The budget that grows evenly."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from tasks.budgets import Budget
from tasks.moment import Moment


class Ramp(Budget):
    """A radius that grows in a straight line to the largest and stays there (as in Gowal et al. 2018).

    Training against a large radius from the first step may never leave the constant answer; from a small one it does.
    """

    grows: ClassVar[bool] = True

    kind: Literal["ramp"] = "ramp"
    first: float = Field(default=0.0, ge=0, le=1)
    """The radius of the first step, as a share of the largest."""
    over: float = Field(default=0.6, gt=0, le=1)
    """Share of the training over which the radius grows. With 1 it would be largest one step after the last."""

    def radii(self, epsilon: float, count: int, moment: Moment, memory: nn.Module) -> float:
        """The radius of this step, the same for all images."""
        grown = min(moment.progress / self.over, 1)
        return epsilon * (self.first * (1 - grown) + grown)
