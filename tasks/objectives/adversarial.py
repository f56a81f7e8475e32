"""What objectives that attack the model share: the attack's budget."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from tasks.attacks.ball import Ball, ball, require_radius, unit
from tasks.objectives import Objective


class Adversarial(Objective):
    """An objective whose images are perturbed within a ball while it trains."""

    epsilon: float = Field(gt=0)
    """Radius of the ball in input units."""
    steps: int = Field(default=10, ge=1)
    """Steps of the inner attack."""
    relative_step: float | None = Field(default=None, gt=0)
    """Length of a step as a share of epsilon; `2.5 / steps` unless given, the rule of Madry et al. 2018."""
    norm: Literal["linf", "l2"] = "linf"
    """Norm of the ball."""

    @property
    def step(self) -> float:
        """Length of a step in input units."""
        return self.epsilon * (self.relative_step or 2.5 / self.steps)

    def within(self, images: torch.Tensor) -> Ball:
        """The balls around images (N, C, H, W)."""
        return ball(self.norm, images, self.epsilon)

    def random_start(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A point of every ball, drawn evenly and then cut to [0, 1]: (N, C, H, W)."""
        if self.norm == "linf":
            noise = torch.empty_like(images).uniform_(-self.epsilon, self.epsilon, generator=generator)
            return self.within(images).project_(noise.add_(images))
        direction = unit(torch.empty_like(images).normal_(generator=generator))
        radii = images.new_empty(len(images), 1, 1, 1).uniform_(generator=generator)
        radii = self.epsilon * radii ** (1 / images[0].numel())
        return (images + radii * direction).clamp_(0, 1)

    @model_validator(mode="after")
    def _stay_in_range(self) -> Self:
        require_radius(self.norm, self.epsilon)
        return self
