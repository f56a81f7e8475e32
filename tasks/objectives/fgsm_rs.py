"""Fast adversarial training."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from tasks.attacks.ascent import cross_entropy_gradient, evaluating
from tasks.objectives import Objective


class FGSMRS(Objective):
    """Fast adversarial training: cross-entropy after one long step from a random start (Wong et al. 2020, algorithm 3).

    The random start may leave [0, 1], as in the authors' code, and only the perturbed image is cut. That matters where
    many pixels are black or white, as in MNIST: cutting the start too takes half of its randomness, and training then
    fell into catastrophic overfitting at epsilon 0.3 in all of four runs.
    """

    kind: Literal["fgsm-rs"] = "fgsm-rs"
    epsilon: float = Field(gt=0, le=1)
    """Largest change of a pixel, in input units."""
    relative_step: float = Field(default=1.25, gt=0)
    """Length of the step as a share of epsilon."""

    def passes(self) -> int:
        """One for the step and one for the loss."""
        return 2

    def loss(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """The mean cross-entropy on perturbed images."""
        change = torch.empty_like(images).uniform_(-self.epsilon, self.epsilon, generator=generator)
        with evaluating(model):
            gradient = cross_entropy_gradient(model, labels)((images + change).requires_grad_())
        change.add_(gradient.sign(), alpha=self.relative_step * self.epsilon).clamp_(-self.epsilon, self.epsilon)
        return F.cross_entropy(model((images + change).clamp_(0, 1)), labels)
