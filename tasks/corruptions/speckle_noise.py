"""Noise that grows with brightness."""

from __future__ import annotations

from typing import ClassVar, Literal

from tasks.attacks.draws import Draws
from tasks.corruptions import Graded, Pixels


class SpeckleNoise(Graded):
    """Gaussian noise in proportion to the pixel (Hendrycks & Dietterich 2019), one of the four extra ones."""

    kind: Literal["speckle-noise"] = "speckle-noise"

    strengths: ClassVar = (0.06, 0.1, 0.12, 0.16, 0.2)
    """Standard deviation as a share of the pixel."""

    def distort(self, pixels: Pixels, severity: int, draws: Draws) -> Pixels:
        """Scales every value by a factor around 1."""
        noise = draws.normal(pixels.shape[1:], "noise").double().numpy()
        return pixels * (1 + self.strength(severity) * noise)
