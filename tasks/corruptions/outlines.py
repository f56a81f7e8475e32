"""Edges of drawn shapes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_WEAK, _STRONG = 50, 150
_NARROW = math.tan(math.pi / 8)


def outlines(images: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Edges one pixel wide (Canny 1986) in images (N, H, W) of levels 0 to 255, as a mask of their shape.

    Gradients are Sobel's in the L1 norm; an edge is kept if it is stronger than 150 somewhere and 50 everywhere.
    """
    from scipy.ndimage import correlate1d, label

    def sobel(along: int, across: int) -> NDArray[np.float64]:
        slope = correlate1d(images, [-1, 0, 1], axis=along, mode="nearest")
        return np.asarray(correlate1d(slope, [1, 2, 1], axis=across, mode="nearest"))

    right, down = sobel(2, 1), sobel(1, 2)
    strength = np.abs(right) + np.abs(down)
    crest = _is_crest(strength, right, down) & (strength > _WEAK)
    within_image = np.zeros((3, 3, 3))
    within_image[1] = 1
    pieces, count = label(crest, within_image)
    strong = np.zeros(count + 1, dtype=bool)
    strong[pieces[crest & (strength > _STRONG)]] = True
    return np.asarray(strong[pieces])


def _is_crest(
    strength: NDArray[np.float64], right: NDArray[np.float64], down: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Where the gradient is as strong as nowhere else across the edge, its direction rounded to 45 degrees."""
    framed = np.pad(strength, ((0, 0), (1, 1), (1, 1)))
    height, width = strength.shape[1:]

    def beside(rows: int, columns: int) -> NDArray[np.float64]:
        return framed[:, 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    flat = np.abs(down) < _NARROW * np.abs(right)
    steep = np.abs(right) < _NARROW * np.abs(down)
    falling = right * down >= 0
    return np.select(
        [flat, steep, falling],
        [
            (strength > beside(0, -1)) & (strength >= beside(0, 1)),
            (strength > beside(-1, 0)) & (strength >= beside(1, 0)),
            (strength > beside(-1, -1)) & (strength > beside(1, 1)),
        ],
        (strength > beside(-1, 1)) & (strength > beside(1, -1)),
    )
