"""Fast adversarial training."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from tasks.attacks.ascent import cross_entropy_gradient, evaluating
from tasks.attacks.ball import Norm
from tasks.moment import Moment
from tasks.objectives.adversarial import Adversarial, per_image, random_change


class FGSMRS(Adversarial):
    """Fast adversarial training: cross-entropy after one long step from a random start (Wong et al. 2020, algorithm 3).

    The random start may leave [0, 1], as in the authors' code for MNIST, and only the perturbed image is cut. That
    matters where many pixels are black or white, as there: cutting the start too takes half of its randomness, and
    training then fell into catastrophic overfitting at epsilon 0.3 in all of four runs.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf",)

    kind: Literal["fgsm-rs"] = "fgsm-rs"
    relative_step: float = Field(default=1.25, gt=0)
    """Length of the step as a share of the radius."""

    def passes(self) -> int:
        """One for the step and one for the loss."""
        return 2

    def perturb(
        self,
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        epsilon: float | torch.Tensor,
        moment: Moment,
    ) -> torch.Tensor:
        """One step from a random start."""
        change = random_change(images, epsilon, moment.generator)
        with evaluating(model):
            gradient = cross_entropy_gradient(model, labels)((images + change).requires_grad_())
        radius = per_image(epsilon)
        change.add_(gradient.sign() * (self.relative_step * radius)).clamp_(-radius, radius)
        return change.add_(images).clamp_(0, 1)
