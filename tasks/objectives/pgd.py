"""Adversarial training."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from tasks.moment import Moment
from tasks.objectives.adversarial import Attacked, Iterated


class PGD(Iterated):
    """Adversarial training: cross-entropy on images that projected gradient descent has perturbed (Madry et al. 2018).

    The attack starts at a random point of the ball and sees the model in evaluation mode; the loss is taken on the
    perturbed images alone, in training mode.
    """

    kind: Literal["pgd"] = "pgd"

    def passes(self) -> int:
        """One for each step of the attack and one for the loss."""
        return self.steps + 1

    def perturb(
        self,
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        epsilon: float | torch.Tensor,
        moment: Moment,
    ) -> torch.Tensor:
        """The last iterate from a random start."""
        return self.ascent(model, images, labels, epsilon, self.random_start(images, epsilon, moment.generator))

    def outer(
        self,
        model: nn.Module,
        images: torch.Tensor,
        perturbed: torch.Tensor,
        labels: torch.Tensor,
        moment: Moment,
    ) -> Attacked:
        """The mean cross-entropy on perturbed images."""
        logits = model(perturbed)
        return Attacked(F.cross_entropy(logits, labels), logits)
