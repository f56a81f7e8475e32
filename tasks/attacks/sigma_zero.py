"""The attack on few values through a smooth stand-in for their number."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from tasks.attacks.ball import Norm, ball
from tasks.attacks.draws import Draws
from tasks.attacks.losses import climb, margin
from tasks.attacks.minimum_norm import MinimumNorm, Nearest

_DECAYS = 0.9, 0.999  # of Adam's two moments


class SigmaZero(MinimumNorm):
    """Sigma-zero: Adam on margin plus smoothed L0 norm, small changes cut off (Cinà et al. 2025, algorithm 1).

    The threshold below which a change is undone rises while the image fools the model and falls while it does not.
    The last iterate is tested too.
    """

    kind: Literal["sigma-zero"] = "sigma-zero"
    norms: ClassVar[tuple[Norm, ...]] = ("l0",)
    norm: Norm = "l0"
    steps: int = Field(default=1000, ge=1)
    """Steps in all; on small MNIST networks 100 change one or two pixels more."""
    step: float = Field(default=1.0, gt=0)
    """Adam's first step; a tenth of it is left at the end, along a cosine."""
    sigma: float = Field(default=1e-3, gt=0)
    """Smoothness: a change d counts as d^2 / (d^2 + sigma) of a changed value."""
    threshold: float = Field(default=0.3, ge=0, le=1)
    """Size below which a change is undone, at first."""
    threshold_rate: float = Field(default=0.01, ge=0)
    """What the threshold gains or loses at a step, as a share of the step."""

    def nearest(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, draws: Draws
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The misclassified iterates with the fewest changed values; draws nothing."""
        rows = torch.arange(len(images), device=images.device)
        around = ball("l0", images, 0.0)
        thresholds = torch.full((len(images), 1, 1, 1), self.threshold, device=images.device)
        mean, square = torch.zeros_like(images), torch.zeros_like(images)
        best = Nearest(images)
        current = images.detach()
        for step in range(self.steps):
            logits, _, gradient = climb(model, current, lambda found: margin(found, labels).clamp(max=0))
            fooled = logits.argmax(dim=1) != labels
            best.note(rows, current, around.distances(current), fooled)
            descent = _largest_one(self._count_slope(current - images) - gradient)
            mean.lerp_(descent, 1 - _DECAYS[0])
            square.lerp_(descent.square(), 1 - _DECAYS[1])
            length = self._annealed(step) / (1 - _DECAYS[0] ** (step + 1))
            scale = (square / (1 - _DECAYS[1] ** (step + 1))).sqrt_().add_(1e-8)
            current = (current - length * mean / scale).clamp_(0, 1)
            change = self.threshold_rate * self._annealed(step + 1)
            thresholds = (thresholds + torch.where(fooled, change, -change).view(-1, 1, 1, 1)).clamp_(0, 1)
            current = torch.where((current - images).abs() < thresholds, images, current)
        with torch.no_grad():
            fooled = model(current).argmax(dim=1) != labels
        best.note(rows, current, around.distances(current), fooled)
        return best.images, best.found

    def _count_slope(self, change: torch.Tensor) -> torch.Tensor:
        """The gradient of the smoothed share of changed values."""
        return 2 * self.sigma / change[0].numel() * change / (change.square() + self.sigma).square()

    def _annealed(self, step: int) -> float:
        return self.step * (0.1 + 0.9 * (1 + math.cos(math.pi * step / self.steps)) / 2)


def _largest_one(gradient: torch.Tensor) -> torch.Tensor:
    """Gradients whose largest entry is 1 or -1; zero stays zero."""
    return gradient / gradient.flatten(1).abs().amax(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
