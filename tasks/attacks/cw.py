"""The attack that weighs distance against misclassification, kept for the record."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from tasks.attacks.ball import Norm, lengths
from tasks.attacks.draws import Draws
from tasks.attacks.losses import climb, margin
from tasks.attacks.minimum_norm import MinimumNorm, Nearest

_DECAYS = 0.9, 0.999  # of Adam's two moments


class CarliniWagner(MinimumNorm):
    """Carlini and Wagner's L2 attack: Adam on squared distance plus weighted margin (2017, section 6A).

    Pixels are (1 + tanh w) / 2, and the weight is searched for each example. An example stops for its present weight
    when its loss no longer falls, as in the authors' program, where a whole batch stops together. For the record: DDN
    finds as near mistakes at a hundredth of the cost.
    """

    kind: Literal["cw"] = "cw"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    norm: Norm = "l2"
    searches: int = Field(default=9, ge=1)
    """Weights tried for each example, the next one by bisection."""
    steps: int = Field(default=10_000, ge=1)
    """Steps for each weight, at most; every tenth of them the loss must have fallen by one part in 10 000."""
    learning_rate: float = Field(default=0.01, gt=0)
    """Adam's."""
    first_weight: float = Field(default=1e-3, gt=0)
    """Weight of the margin that is tried first; ten times as much while nothing is found."""

    def nearest(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, draws: Draws
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The nearest misclassified iterates; draws nothing."""
        best = Nearest(images)
        with torch.no_grad():
            wrong = model(images).argmax(dim=1) != labels
        best.note(torch.arange(len(images), device=images.device), images, torch.zeros_like(best.distances), wrong)
        rows = (~wrong).nonzero().squeeze(1)
        lower = torch.zeros(len(rows), device=images.device)
        upper = torch.full_like(lower, torch.inf)
        weight = torch.full_like(lower, self.first_weight)
        for _ in range(self.searches if len(rows) else 0):
            broken = self._descend(model, images[rows], labels[rows], weight, rows, best)
            upper = torch.where(broken, weight, upper)
            lower = torch.where(broken, lower, weight)
            weight = torch.where(upper.isfinite(), (lower + upper) / 2, weight * 10)
        return best.images, best.found

    def _descend(
        self,
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        weight: torch.Tensor,
        rows: torch.Tensor,
        best: Nearest,
    ) -> torch.Tensor:
        """One weight for each of the examples `rows`: which of them were broken with it, (n,) bool."""
        broken = torch.zeros_like(rows, dtype=torch.bool)
        going = torch.arange(len(rows), device=rows.device)
        pixels = ((2 * images - 1) * (1 - 1e-6)).atanh()
        mean, square = torch.zeros_like(pixels), torch.zeros_like(pixels)
        before = torch.full_like(weight, torch.inf)
        every = max(self.steps // 10, 1)
        for step in range(self.steps):
            squashed = pixels.tanh()
            current = (squashed + 1) / 2
            logits, margins, gradient = climb(model, current, lambda found: margin(found, labels).clamp(max=0))  # noqa: B023
            change = current - images
            distances = lengths(change).flatten()
            fooled = logits.argmax(dim=1) != labels
            best.note(rows[going], current, distances, fooled)
            broken[going] |= fooled
            descent = (2 * change - weight.view(-1, 1, 1, 1) * gradient) * (1 - squashed.square()) / 2
            mean.lerp_(descent, 1 - _DECAYS[0])
            square.lerp_(descent.square(), 1 - _DECAYS[1])
            length = self.learning_rate / (1 - _DECAYS[0] ** (step + 1))
            scale = (square / (1 - _DECAYS[1] ** (step + 1))).sqrt_().add_(1e-8)
            pixels -= length * mean / scale
            if step % every == 0:
                loss = distances.square() - weight * margins
                kept = (loss <= 0.9999 * before).nonzero().squeeze(1)
                if not len(kept):
                    break
                images, labels, weight, going, before = (state[kept] for state in (images, labels, weight, going, loss))
                pixels, mean, square = pixels[kept], mean[kept], square[kept]
        return broken
