"""Blur of a lens that is out of focus."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tasks.attacks.draws import Draws
from tasks.corruptions import Corruption, Pixels
from tasks.corruptions.smoothing import filtered

_REACH = 3
"""Pixels from the kernel's centre to its edge: the largest disk and its softening fit."""


class DefocusBlur(Corruption):
    """A blur by a disk with softened edges (Hendrycks & Dietterich 2019).

    The first three disks are a single pixel, so it is their softening that blurs.
    """

    kind: Literal["defocus-blur"] = "defocus-blur"

    strengths: ClassVar = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
    """Radius of the disk and standard deviation of its softening, in pixels."""

    def distort(self, pixels: Pixels, severity: int, draws: Draws) -> Pixels:
        """Correlates with the softened disk."""
        radius, softening = self.strengths[severity - 1]
        return filtered(pixels, _disk(radius, softening))


def _disk(radius: float, softening: float) -> NDArray[np.float64]:
    """(7, 7): the pixels within the radius, smoothed with a Gaussian of three taps."""
    from scipy.ndimage import correlate1d

    place = np.arange(-_REACH, _REACH + 1)
    disk: NDArray[np.float64] = (place[:, None] ** 2 + place**2 <= radius**2).astype(np.float64)
    taps = np.exp(-(np.arange(-1, 2) ** 2) / (2 * softening**2))
    for axis in (0, 1):
        disk = correlate1d(disk, taps / taps.sum(), axis=axis)
    disk /= disk.sum()
    return disk
