"""The attack of one step from a random start."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.ascent import ascend, cross_entropy_gradient
from tasks.attacks.ball import ball
from tasks.attacks.draws import Draws


class FGSMRS(Attack):
    """Fast gradient sign method from a random start: one long step, then back into the ball (Wong et al. 2020, Alg. 3).

    This is what fast adversarial training defends against, and no more than a quick look otherwise.
    """

    kind: Literal["fgsm-rs"] = "fgsm-rs"
    relative_step: float = Field(default=1.25, gt=0)
    """Length of the step as a share of epsilon."""

    def search(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        """The images after the step, whether it helped or not."""
        within = ball(self.norm, images, epsilon)
        size = self.relative_step * epsilon.view(-1, 1, 1, 1)
        return ascend(cross_entropy_gradient(model, labels), within.random(draws, "start"), within, size, steps=1)
