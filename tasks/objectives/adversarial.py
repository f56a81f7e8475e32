"""What objectives that attack the model share: the attack's budget."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from tasks.attacks.ball import Norm
from tasks.objectives import Objective


class Adversarial(Objective):
    """An objective whose images are perturbed within a ball while it trains."""

    epsilon: float = Field(gt=0)
    """Radius of the ball in input units."""
    steps: int = Field(default=10, ge=1)
    """Steps of the inner attack."""
    relative_step: float | None = Field(default=None, gt=0)
    """Length of a step as a share of epsilon; `2.5 / steps` unless given, the rule of Madry et al. 2018."""
    norm: Norm = "linf"
    """Norm of the ball."""

    @property
    def step(self) -> float:
        """Length of a step in input units."""
        return self.epsilon * (self.relative_step or 2.5 / self.steps)

    @model_validator(mode="after")
    def _stay_in_range(self) -> Self:
        if self.norm == "linf" and self.epsilon > 1:
            raise ValueError(f"epsilon is {self.epsilon}, but images lie in [0, 1]: at most 1 in norm linf")
        return self
