"""Too little contrast."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from tasks.attacks.draws import Draws
from tasks.corruptions import Graded, Pixels


class Contrast(Graded):
    """Values drawn towards the mean of their channel (Hendrycks & Dietterich 2019)."""

    kind: Literal["contrast"] = "contrast"

    strengths: ClassVar = (0.75, 0.5, 0.4, 0.3, 0.15)
    """What remains of the distance to the mean."""

    def distort(self, pixels: Pixels, severity: int, draws: Draws) -> Pixels:
        """Shrinks the distance of every value to its image's mean."""
        levels = np.rint(pixels * 255)  # whole numbers add up to the same sum in every order
        mean: Pixels = levels.sum(axis=(2, 3), keepdims=True) / (255 * levels[0, 0].size)
        return (pixels - mean) * self.strength(severity) + mean
