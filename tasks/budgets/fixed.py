"""The budget that does not change."""

from __future__ import annotations

from typing import Literal

from torch import nn

from tasks.budgets import Budget
from tasks.moment import Moment


class Fixed(Budget):
    """The largest radius for every image at every step (Madry et al. 2018)."""

    kind: Literal["fixed"] = "fixed"

    def radii(self, epsilon: float, count: int, moment: Moment, memory: nn.Module) -> float:
        """`epsilon`."""
        return epsilon
