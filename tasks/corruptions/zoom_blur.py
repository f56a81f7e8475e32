"""Blur of moving towards the scene."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from tasks.attacks.draws import Draws
from tasks.corruptions import Graded, Pixels
from tasks.corruptions.sampling import zoomed


class ZoomBlur(Graded):
    """The mean of an image and ever closer views of its middle (Hendrycks & Dietterich 2019)."""

    kind: Literal["zoom-blur"] = "zoom-blur"

    strengths: ClassVar = (1.06, 1.11, 1.16, 1.21, 1.26)
    """Where the factors end, which rise from 1 by 0.01."""

    def distort(self, pixels: Pixels, severity: int, draws: Draws) -> Pixels:
        """Averages over the factors; the image as it is counts twice."""
        factors = np.arange(1, self.strength(severity), 0.01)  # rounding puts the end itself into the first two lists
        total = pixels.copy()
        for factor in factors:
            total += zoomed(pixels, float(factor))
        return total / (len(factors) + 1)
