"""Blur of frosted glass."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from tasks.attacks.draws import Draws
from tasks.corruptions import Corruption, Pixels, truncated
from tasks.corruptions.smoothing import smoothed


class GlassBlur(Corruption):
    """Pixels scattered over their neighbourhood between two Gaussian blurs (Hendrycks & Dietterich 2019).

    The published code means to swap two pixels but copies one over the other, since it swaps views of one array. The
    same is done here: going from the last pixel to the first, each is replaced by itself or a neighbour above, to the
    left, or both. It meets its neighbours before they change, so that a pass is a single gather. The first blurs
    are too narrow to change anything; the later, wider ones hide a part of the scattering.
    """

    kind: Literal["glass-blur"] = "glass-blur"

    strengths: ClassVar = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))
    """Standard deviation of the blurs in pixels, and passes of scattering, by one pixel each."""

    def distort(self, pixels: Pixels, severity: int, draws: Draws) -> Pixels:
        """Blurs, scatters, blurs."""
        sigma, passes = self.strengths[severity - 1]
        scattered = truncated(smoothed(pixels, sigma)) / 255
        for each in range(passes):
            scattered = _scattered(scattered, draws.under("pass", each))
        return smoothed(scattered, sigma)


def _scattered(pixels: Pixels, draws: Draws) -> Pixels:
    """One pass; the first two rows and columns stay, as they do in the published code."""
    rows, columns = pixels.shape[2:]
    height, width = np.arange(2, rows), np.arange(2, columns)
    up = draws.integers(2, (len(height), len(width)), "up").numpy()
    left = draws.integers(2, (len(height), len(width)), "left").numpy()
    source = (height[:, None] - up) * columns + (width - left)
    flat = pixels.reshape(*pixels.shape[:2], -1)
    result = pixels.copy()
    gathered = np.take_along_axis(flat, source.reshape(len(pixels), 1, -1), axis=2)
    result[:, :, 2:, 2:] = gathered.reshape(result[:, :, 2:, 2:].shape)
    return result
