"""Adversarial training."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from tasks.attacks.ascent import ascend, cross_entropy_gradient, evaluating
from tasks.objectives.adversarial import Adversarial


class PGD(Adversarial):
    """Adversarial training: cross-entropy on images that projected gradient descent has perturbed (Madry et al. 2018).

    The attack starts at a random point of the ball and sees the model in evaluation mode; the loss is taken on the
    perturbed images alone, in training mode.
    """

    kind: Literal["pgd"] = "pgd"

    def passes(self) -> int:
        """One for each step of the attack and one for the loss."""
        return self.steps + 1

    def loss(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """The mean cross-entropy on perturbed images."""
        with evaluating(model):
            gradient_of = cross_entropy_gradient(model, labels)
            perturbed = ascend(
                gradient_of, self.random_start(images, generator), self.within(images), self.step, self.steps
            )
        return F.cross_entropy(model(perturbed), labels)
