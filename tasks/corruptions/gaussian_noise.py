"""Noise of a sensor in low light."""

from __future__ import annotations

from typing import ClassVar, Literal

from tasks.attacks.draws import Draws
from tasks.corruptions import Graded, Pixels


class GaussianNoise(Graded):
    """Gaussian noise, the same on dark and bright pixels (Hendrycks & Dietterich 2019)."""

    kind: Literal["gaussian-noise"] = "gaussian-noise"

    strengths: ClassVar = (0.04, 0.06, 0.08, 0.09, 0.10)
    """Standard deviation."""

    def distort(self, pixels: Pixels, severity: int, draws: Draws) -> Pixels:
        """Adds independent noise to every value."""
        noise = draws.normal(pixels.shape[1:], "noise").double().numpy()
        return pixels + self.strength(severity) * noise
