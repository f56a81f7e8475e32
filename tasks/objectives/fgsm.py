"""Adversarial training with one step from the image."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from tasks.attacks.ascent import ascend, cross_entropy_gradient, evaluating
from tasks.attacks.ball import Norm, ball
from tasks.moment import Moment
from tasks.objectives.adversarial import Adversarial, per_image


class FGSM(Adversarial):
    """Fast gradient sign training: cross-entropy after one step from the image itself (Goodfellow et al. 2015).

    At large radii it falls into catastrophic overfitting: the network withstands this one step, and attacks of several
    break it (Wong et al. 2020). It is here to be compared with. The source trains on clean images as well, half and
    half; this is the form of later work, on perturbed ones alone.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf",)

    kind: Literal["fgsm"] = "fgsm"
    relative_step: float = Field(default=1.0, gt=0)
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
        """One step from the images; draws nothing."""
        length = per_image(epsilon) * self.relative_step
        with evaluating(model):
            gradient_of = cross_entropy_gradient(model, labels)
            return ascend(gradient_of, images.clone(), ball("linf", images, epsilon), length, steps=1)
