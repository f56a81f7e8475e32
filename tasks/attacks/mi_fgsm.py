"""The attack whose steps gather momentum."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.ball import ball
from tasks.attacks.draws import Draws
from tasks.attacks.losses import climb, cross_entropy
from tasks.attacks.strongest import Strongest


class MIFGSM(Attack):
    """Momentum iterative fast gradient sign method, made to transfer between models (Dong et al. 2018, Alg. 1).

    It starts at the image and draws nothing. Every iterate is tested, and an example that falls is dropped at once.
    """

    kind: Literal["mi-fgsm"] = "mi-fgsm"
    steps: int = Field(default=10, ge=1)
    """Steps, each epsilon divided by their number."""
    decay: float = Field(default=1.0, ge=0)
    """Share of the gathered gradients that each step keeps, mu in the paper."""

    def search(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        """For each example the first iterate that fools the model, else the one of greatest cross-entropy."""
        best = Strongest(images)
        rows, within = best.standing(), ball(self.norm, images, epsilon)
        current, gathered, size = images.clone(), torch.zeros_like(images), epsilon.view(-1, 1, 1, 1) / self.steps
        for _ in range(self.steps):
            logits, losses, gradient = climb(model, current, lambda found: cross_entropy(found, labels))  # noqa: B023
            fooled = best.note(rows, current, losses, logits.argmax(dim=1) != labels)
            if fooled.all():
                return best.images
            gathered = self.decay * gathered + _of_sum_one(gradient)
            within.step_(current, gathered, size)
            if fooled.any():
                kept = (~fooled).nonzero().squeeze(1)
                current, labels, rows, within = current[kept], labels[kept], rows[kept], within.at(kept)
                gathered, size = gathered[kept], size[kept]
        with torch.no_grad():
            logits = model(current)
        best.note(rows, current, cross_entropy(logits, labels), logits.argmax(dim=1) != labels)
        return best.images


def _of_sum_one(gradient: torch.Tensor) -> torch.Tensor:
    """Gradients whose absolute values add up to one; zero stays zero."""
    sums = gradient.flatten(1).abs().sum(dim=1).view(-1, 1, 1, 1)
    return gradient / sums.clamp_min(torch.finfo(gradient.dtype).tiny)
