"""Colours too faint or too strong."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from tasks.attacks.draws import Draws
from tasks.corruptions import Corruption, Pixels


class Saturate(Corruption):
    """Another saturation in hue, saturation and value (Hendrycks & Dietterich 2019), one of the four extra ones.

    The second severity is fainter than the first; from the third on colours are stronger. Colourless pixels have the
    hue of red, so the last two severities make them reddish, as the published ones do. Images of one channel have no
    colour to change and stay as they are.
    """

    kind: Literal["saturate"] = "saturate"

    strengths: ClassVar = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))
    """Factor on the saturation, and what is added to it; it ends at 1."""

    def distort(self, pixels: Pixels, severity: int, draws: Draws) -> Pixels:
        """Moves every channel away from the largest, or towards it."""
        if pixels.shape[1] == 1:
            return pixels
        factor, added = self.strengths[severity - 1]
        value: Pixels = pixels.max(axis=1, keepdims=True)
        spread: Pixels = value - pixels.min(axis=1, keepdims=True)
        colourless = spread == 0
        # How far each channel lies below the value, from 0 to 1 of the pixel's spread; red, if it has no hue.
        red = np.array([0.0, 1.0, 1.0]).reshape(1, 3, 1, 1)
        below = np.where(colourless, red, (value - pixels) / np.where(colourless, 1, spread))
        saturation = spread / np.where(value == 0, 1, value)
        changed: Pixels = (saturation * factor + added).clip(0, 1)
        return value * (1 - changed * below)
