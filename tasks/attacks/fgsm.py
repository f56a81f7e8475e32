"""The attack of one step."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.ascent import ascend, cross_entropy_gradient
from tasks.attacks.ball import ball
from tasks.attacks.draws import Draws


class FGSM(Attack):
    """Fast gradient sign method: one step of size epsilon from the image itself (Goodfellow et al. 2015)."""

    kind: Literal["fgsm"] = "fgsm"

    def search(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        """The images after the step; draws nothing."""
        within = ball(self.norm, images, epsilon)
        return ascend(cross_entropy_gradient(model, labels), images.clone(), within, epsilon.view(-1, 1, 1, 1), steps=1)
