"""The step schedule."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, field_validator

from tasks.schedules import Schedule


class Step(Schedule):
    """Drops by a constant factor at milestones (He et al. 2016, section 4.2)."""

    kind: Literal["step"] = "step"
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.75)
    """Shares of the training, rising: (0.5, 0.75) are epochs 80 and 120 of 160."""
    drop: float = Field(default=0.1, gt=0, lt=1)
    """What the learning rate is multiplied with at each milestone."""

    @field_validator("milestones")
    @classmethod
    def _rising(cls, milestones: tuple[float, ...]) -> tuple[float, ...]:
        if any(later <= earlier for earlier, later in pairwise(milestones)):
            raise ValueError("milestones must rise")
        return milestones

    def shape(self, progress: float) -> float:
        """`drop` to the number of milestones reached."""
        return self.drop ** sum(progress >= milestone for milestone in self.milestones)
