"""The attack that steers direction and length apart."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from tasks.attacks.ball import Norm, lengths, unit
from tasks.attacks.draws import Draws
from tasks.attacks.losses import climb, cross_entropy
from tasks.attacks.minimum_norm import MinimumNorm, Nearest


class DDN(MinimumNorm):
    """Decoupled direction and norm: a step along the gradient, then a length of its own (Rony et al. 2019).

    Algorithm 1 of the paper: the length shrinks while the image fools the model and grows while it does not. Every
    iterate is tested, the last one too.
    """

    kind: Literal["ddn"] = "ddn"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    norm: Norm = "l2"
    steps: int = Field(default=100, ge=1)
    """Steps, of lengths that fall from 1 to 0.01 along a cosine."""
    first_radius: float = Field(default=1.0, gt=0)
    """Length of the first change, in input units."""
    gamma: float = Field(default=0.05, gt=0, lt=1)
    """Share by which the length of the change shrinks or grows at every step."""
    levels: int | None = Field(default=None, ge=2)
    """Values that a pixel can take, evenly spaced; 256 finds images that survive being stored in 8 bits."""

    def nearest(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, draws: Draws
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The nearest misclassified iterates; draws only where a gradient is zero."""
        rows = torch.arange(len(images), device=images.device)
        longest = lengths(torch.maximum(images, 1 - images))
        radii = torch.full_like(longest, self.first_radius)
        best = Nearest(images)
        current = images.detach()
        for step in range(self.steps):
            logits, _, gradient = climb(model, current, lambda found: cross_entropy(found, labels))
            fooled = logits.argmax(dim=1) != labels
            best.note(rows, current, lengths(current - images).flatten(), fooled)
            size = 0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2
            change = (current - images).add_(_direction(gradient, draws, step), alpha=size)
            grown = radii * torch.where(fooled, 1 - self.gamma, 1 + self.gamma).view(-1, 1, 1, 1)
            radii = torch.minimum(grown, longest)  # nothing in [0, 1] is farther away
            current = self._rounded((images + radii * unit(change)).clamp_(0, 1))
        with torch.no_grad():
            fooled = model(current).argmax(dim=1) != labels
        best.note(rows, current, lengths(current - images).flatten(), fooled)
        return best.images, best.found

    def _rounded(self, images: torch.Tensor) -> torch.Tensor:
        if self.levels is None:
            return images
        return images.mul_(self.levels - 1).round_().div_(self.levels - 1)


def _direction(gradient: torch.Tensor, draws: Draws, step: int) -> torch.Tensor:
    """The gradient's direction, and a random one where it is zero: a saturated softmax must not end the search."""
    lost = lengths(gradient) == 0
    if lost.any():
        gradient = torch.where(lost, draws.normal(tuple(gradient.shape[1:]), "direction", step), gradient)
    return unit(gradient)
