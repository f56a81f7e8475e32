"""Clouds drawn by subdivision."""

from __future__ import annotations

import numpy as np

from tasks.attacks.draws import Draws
from tasks.corruptions import Pixels


def plasma(height: int, width: int, decay: float, draws: Draws) -> Pixels:
    """(N, 1, H, W): for each example a fractal landscape by the diamond-square algorithm (Fournier et al. 1982).

    It wraps round at the edges and lies in [0, 1], both reached; drawn at the next power of two and cropped.

    Args:
        height: H.
        width: W.
        decay: the random displacement shrinks by its square whenever the grid is halved; smooth if large.
        draws: of the N examples.
    """
    size = 1 << (max(height, width) - 1).bit_length()
    land = np.zeros((len(draws), size, size))
    displacement = 1.0
    step = size
    while step >= 2:
        half = step // 2
        grid = (size // step, size // step)

        def displaced(sums: Pixels, *purpose: int | str) -> Pixels:
            noise = draws.uniform(sums.shape[1:], *purpose).double().numpy() * 2 - 1
            return sums / 4 + displacement * noise  # noqa: B023 - called within this very round

        corners = land[:, ::step, ::step]
        rows = corners + np.roll(corners, -1, axis=1)
        land[:, half::step, half::step] = displaced(rows + np.roll(rows, -1, axis=2), "square", *grid)
        centres = land[:, half::step, half::step]
        above = centres + np.roll(centres, 1, axis=1) + corners + np.roll(corners, -1, axis=2)
        beside = centres + np.roll(centres, 1, axis=2) + corners + np.roll(corners, -1, axis=1)
        land[:, ::step, half::step] = displaced(above, "row", *grid)
        land[:, half::step, ::step] = displaced(beside, "column", *grid)
        displacement /= decay**2
        step = half
    land -= land.min(axis=(1, 2), keepdims=True)
    land /= land.max(axis=(1, 2), keepdims=True)
    return land[:, None, :height, :width]
