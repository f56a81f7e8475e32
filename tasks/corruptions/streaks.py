"""Motion blur as ImageMagick does it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tasks.corruptions import Pixels
from tasks.corruptions.sampling import at


def streaked(pixels: Pixels, radius: float, sigma: float, degrees: NDArray[np.float64]) -> Pixels:
    """Each image smeared along a line, on one side, with weights that fall like a Gaussian; rounded to bytes.

    Pixels are read at whole places, and beyond the edges the nearest is repeated (ImageMagick, `MotionBlurImage`).

    Args:
        pixels: (N, C, H, W) in [0, 1].
        radius: half the number of weights, in pixels.
        sigma: standard deviation of the weights in pixels.
        degrees: (N,) the direction in which pixels are read, clockwise from the right.
    """
    height, width = pixels.shape[2:]
    steps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    angles = np.deg2rad(degrees)[:, None, None]
    total = np.zeros_like(pixels)
    for step, weight in zip(steps, weights, strict=True):
        down = np.ceil(step * np.sin(angles) - 0.5).astype(np.int64)
        right = np.ceil(step * np.cos(angles) - 0.5).astype(np.int64)
        rows = (np.arange(height)[:, None] + down).clip(0, height - 1)
        columns = (np.arange(width) + right).clip(0, width - 1)
        total += weight * at(pixels, *np.broadcast_arrays(rows, columns))
    return np.rint(total * 255) / 255
