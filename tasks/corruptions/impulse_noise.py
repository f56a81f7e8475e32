"""Noise of bits that flipped."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from tasks.attacks.draws import Draws
from tasks.corruptions import Graded, Pixels


class ImpulseNoise(Graded):
    """Salt and pepper: some values become 0 or 1, in each channel by itself (Hendrycks & Dietterich 2019)."""

    kind: Literal["impulse-noise"] = "impulse-noise"

    strengths: ClassVar = (0.01, 0.02, 0.03, 0.05, 0.07)
    """Share of the values that are replaced."""

    def distort(self, pixels: Pixels, severity: int, draws: Draws) -> Pixels:
        """Replaces each value with this chance, by either extreme with equal chances."""
        replaced = draws.uniform(pixels.shape[1:], "where").numpy() < self.strength(severity)
        salt = draws.signs(pixels.shape[1:], "which").numpy() > 0
        return np.where(replaced, salt.astype(np.float64), pixels)
