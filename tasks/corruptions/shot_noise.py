"""Noise of counted photons."""

from __future__ import annotations

from functools import cache
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tasks.attacks.draws import Draws
from tasks.corruptions import Graded, Pixels


class ShotNoise(Graded):
    """Poisson noise: every value is a number of photons counted (Hendrycks & Dietterich 2019)."""

    kind: Literal["shot-noise"] = "shot-noise"

    strengths: ClassVar = (500, 250, 100, 75, 50)
    """Photons expected of a white pixel."""

    def distort(self, pixels: Pixels, severity: int, draws: Draws) -> Pixels:
        """Draws each value's photons by inverting their distribution."""
        white = self.strength(severity)
        chances = _chances(white)
        levels: Pixels = np.rint(pixels * 255)
        drawn = draws.uniform(pixels.shape[1:], "photons").double().numpy()
        # The distribution of level v is stored raised by v, so that one search in one rising list serves all levels.
        found = np.searchsorted(chances.ravel(), levels + drawn, side="right")
        counted: Pixels = found - levels * chances.shape[1]
        return counted / white


@cache
def _chances(white: float) -> NDArray[np.float64]:
    """(256, most + 1): for each level v and count k, v plus the chance of at most k photons."""
    from scipy.special import gammaincc

    expected = np.arange(256)[:, None] * white / 255
    most = int(white + 8 * white**0.5)  # beyond this a chance is below 2**-24, the finest that is drawn
    chances = gammaincc(np.arange(1, most + 2), expected)
    chances[:, -1] = 1
    return np.asarray(np.arange(256)[:, None] + chances, dtype=np.float64)
