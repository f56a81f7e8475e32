"""Blur of a moving camera."""

from __future__ import annotations

from typing import ClassVar, Literal

from tasks.attacks.draws import Draws
from tasks.corruptions import Corruption, Pixels
from tasks.corruptions.streaks import streaked


class MotionBlur(Corruption):
    """A smear in one direction (Hendrycks & Dietterich 2019); C-like, not equal to the pixel.

    The published images were made with ImageMagick, whose kernel is written anew here.
    """

    kind: Literal["motion-blur"] = "motion-blur"

    strengths: ClassVar = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))
    """Radius and standard deviation of the smear in pixels."""

    def distort(self, pixels: Pixels, severity: int, draws: Draws) -> Pixels:
        """Smears at an angle of -45 to 45 degrees."""
        radius, sigma = self.strengths[severity - 1]
        degrees = draws.uniform((), "angle").double().numpy() * 90 - 45
        return streaked(pixels, radius, sigma, degrees)
