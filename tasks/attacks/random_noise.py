"""The attack that only guesses: what any other must beat."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.ball import Norm, ball
from tasks.attacks.draws import Draws
from tasks.attacks.losses import margin
from tasks.attacks.strongest import Strongest


class RandomNoise(Attack):
    """Random points of the ball, the baseline that every attack must beat (Carlini et al. 2019).

    A model that errs on many of them is not robust, and an attack that finds less than they do is broken.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    gradients: ClassVar[bool] = False

    kind: Literal["random-noise"] = "random-noise"
    points: int = Field(default=100, ge=1)
    """Points tried for each image; those of a smaller number are among those of a larger."""

    def search(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        """For each example the first point that fools the model, else the one of greatest margin."""
        best = Strongest(images)
        rows, within = best.standing(), ball(self.norm, images, epsilon)
        for point in range(self.points):
            noisy = within.random(draws, "point", point)
            with torch.no_grad():
                logits = model(noisy)
            fooled = best.note(rows, noisy, margin(logits, labels), logits.argmax(dim=1) != labels)
            if fooled.any():
                kept = (~fooled).nonzero().squeeze(1)
                if not len(kept):
                    break
                rows, labels, within, draws = rows[kept], labels[kept], within.at(kept), draws.at(kept)
        return best.images
