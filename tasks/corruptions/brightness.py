"""Too much light."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from tasks.attacks.draws import Draws
from tasks.corruptions import Graded, Pixels


class Brightness(Graded):
    """A higher value of every pixel in hue, saturation and value (Hendrycks & Dietterich 2019)."""

    kind: Literal["brightness"] = "brightness"

    strengths: ClassVar = (0.05, 0.1, 0.15, 0.2, 0.3)
    """Added to the value, which ends at 1."""

    def distort(self, pixels: Pixels, severity: int, draws: Draws) -> Pixels:
        """Raises the largest channel and the others with it in proportion; black becomes grey."""
        value: Pixels = pixels.max(axis=1, keepdims=True)
        raised = (value + self.strength(severity)).clip(0, 1)
        black = value == 0
        return np.where(black, raised, pixels * (raised / np.where(black, 1, value)))
