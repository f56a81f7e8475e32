"""The one-cycle schedule."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from tasks.schedules import Schedule


class OneCycle(Schedule):
    """Up to the peak and down again, both half cosines (Smith & Topin 2018; annealing as in PyTorch's `OneCycleLR`)."""

    kind: Literal["one-cycle"] = "one-cycle"
    warmup: float = Field(default=0.3, gt=0, lt=1)
    """Share of the training that rises: the peak is its end."""
    first: float = Field(default=0.04, gt=0, le=1)
    """The factor at the first step."""
    final: float = Field(default=4e-6, ge=0, le=1)
    """The factor at the last step."""

    def factor(self, step: int, steps: int) -> float:
        """The factor at `step` of `steps`: the rise is the warm-up."""
        peak = max(self.warmup * steps - 1, 0)
        if step < peak:
            return _between(self.first, 1, step / peak)
        return _between(1, self.final, (step - peak) / max(steps - 1 - peak, 1))


def _between(begin: float, end: float, share: float) -> float:
    return end + (begin - end) * (1 + math.cos(math.pi * share)) / 2
