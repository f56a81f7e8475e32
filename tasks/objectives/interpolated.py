"""Adversarial training between images."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from tasks.attacks.ascent import evaluating
from tasks.moment import Moment
from tasks.objectives.adversarial import Attacked, Iterated


class Mixture(NamedTuple):
    """Images mixed in pairs."""

    images: torch.Tensor
    """(N, C, H, W)."""
    share: torch.Tensor
    """That of the first image of every pair, a scalar; the second has the rest."""
    labels: torch.Tensor
    """(N,) of the first images."""
    others: torch.Tensor
    """(N,) of the second."""

    def cross_entropy(self, logits: torch.Tensor) -> torch.Tensor:
        """The mean over the batch, each label weighted with the share of its image."""
        own, other = F.cross_entropy(logits, self.labels), F.cross_entropy(logits, self.others)
        return self.share * own + (1 - self.share) * other


class Interpolated(Iterated):
    """Interpolated adversarial training: mixup of clean images, and of perturbed ones (Lamb et al. 2019).

    The loss is the mean of two cross-entropies, on clean images mixed in pairs and on perturbed images mixed in pairs,
    each with its own pairs and its own share, drawn from Beta(alpha, alpha) for the batch. The attack perturbs unmixed
    images. Both mixtures go through the network as one batch, as in `half-clean`, from which only the mixing
    differs.

    Since the loss meets perturbed images only as parts of a mixture, what a budget learns from is a pass of its own:
    unmixed, in evaluation mode as the attack sees the model, and without a gradient.
    """

    kind: Literal["interpolated"] = "interpolated"
    alpha: float = Field(default=1.0, gt=0)
    """Of the Beta distribution: 1 is uniform, less leaves most pairs nearly unmixed, more mixes evenly."""

    def passes(self) -> int:
        """One for each step of the attack and one for each mixture.

        The forward pass for the budget is not counted, as it goes no way back.
        """
        return self.steps + 2

    def outer(
        self,
        model: nn.Module,
        images: torch.Tensor,
        perturbed: torch.Tensor,
        labels: torch.Tensor,
        moment: Moment,
    ) -> Attacked:
        """The mean cross-entropy over both mixtures, and the logits of the perturbed images as they are."""
        with evaluating(model), torch.no_grad():
            attacked = model(perturbed)
        clean, adversarial = (self._mix(each, labels, moment.generator) for each in (images, perturbed))
        logits = model(torch.cat([clean.images, adversarial.images])).chunk(2)
        loss = (clean.cross_entropy(logits[0]) + adversarial.cross_entropy(logits[1])) / 2
        return Attacked(loss, attacked)

    def _mix(self, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> Mixture:
        share = symmetric_beta(self.alpha, generator).to(images.dtype)
        partner = torch.randperm(len(images), generator=generator, device=images.device)
        return Mixture(images.lerp(images[partner], 1 - share), share, labels, labels[partner])


def symmetric_beta(alpha: float, generator: torch.Generator) -> torch.Tensor:
    """A draw from Beta(alpha, alpha), a float64 scalar on the generator's device.

    PyTorch's own sampler draws from the global generator. This is the polar method for Student's t distribution with
    2 alpha degrees of freedom (Bailey 1994), with `T / sqrt(2 alpha + T^2)` written out so that nothing overflows.
    """
    radius, angle = torch.rand(2, generator=generator, device=generator.device, dtype=torch.float64)
    p, cosine = radius ** (1 / alpha), (2 * math.pi * angle).cos()
    place: torch.Tensor = cosine * ((1 - p) / (p + (1 - p) * cosine**2)).sqrt()
    return (1 + place.clamp(-1, 1)) / 2  # rounding alone takes it outside
