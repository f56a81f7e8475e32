"""Blur without an edge."""

from __future__ import annotations

from typing import ClassVar, Literal

from tasks.attacks.draws import Draws
from tasks.corruptions import Graded, Pixels
from tasks.corruptions.smoothing import smoothed


class GaussianBlur(Graded):
    """A Gaussian blur (Hendrycks & Dietterich 2019), one of the four extra ones."""

    kind: Literal["gaussian-blur"] = "gaussian-blur"

    strengths: ClassVar = (0.4, 0.6, 0.7, 0.8, 1)
    """Standard deviation in pixels."""

    def distort(self, pixels: Pixels, severity: int, draws: Draws) -> Pixels:
        """Convolves with a Gaussian."""
        return smoothed(pixels, self.strength(severity))
