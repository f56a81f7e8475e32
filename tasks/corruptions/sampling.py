"""Images read between their pixels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.corruptions import Pixels

Places = NDArray[np.float64]
Indices = NDArray[np.integer[Any]]


def zoomed(pixels: Pixels, factor: float) -> Pixels:
    """The middle of each image, magnified to the size of the whole by linear interpolation.

    Args:
        pixels: (N, C, H, W).
        factor: at least 1; kept pixels and magnified size are rounded as `scipy.ndimage.zoom` does.
    """
    for axis in (2, 3):
        length = pixels.shape[axis]
        kept = math.ceil(length / factor)
        grown = round(kept * factor)
        place = (np.arange(length) + (grown - length) // 2) * ((kept - 1) / (grown - 1))
        low = place.astype(np.int64)
        high = np.minimum(low + 1, kept - 1)
        share = place - low if axis == 3 else (place - low)[:, None]
        first = (length - kept) // 2
        pixels = pixels.take(first + low, axis) * (1 - share) + pixels.take(first + high, axis) * share
    return pixels


def sampled(pixels: Pixels, rows: Places, columns: Places, *, repeat_edge: bool) -> Pixels:
    """Each image at places of its own, by bilinear interpolation; beyond the edges it is mirrored.

    Args:
        pixels: (N, C, H, W).
        rows: (N, H, W), from 0 to H - 1 inside the image.
        columns: (N, H, W), likewise.
        repeat_edge: whether the mirror repeats the last pixel.
    """
    height, width = pixels.shape[2:]
    top, left = np.floor(rows), np.floor(columns)
    down, right = (rows - top)[:, None], (columns - left)[:, None]
    folded = [_folded(top + step, height, repeat_edge) for step in (0, 1)]
    across = [_folded(left + step, width, repeat_edge) for step in (0, 1)]
    upper, lower = ((1 - right) * at(pixels, row, across[0]) + right * at(pixels, row, across[1]) for row in folded)
    return (1 - down) * upper + down * lower


def stretched(height: int, width: int, before: Places, after: Places) -> tuple[Places, Places]:
    """Where each pixel comes from, rows and columns (N, H, W), under the affine map that moves three points.

    Args:
        height: H.
        width: W.
        before: (3, 2) the points as x and y, not on one line.
        after: (N, 3, 2) where each image has them, not on one line.
    """
    x, y = (axis[:, None, None] for axis in after[:, 0].T)
    (right, down), (right_too, down_too) = ((after[:, point] - after[:, 0]).T[:, :, None, None] for point in (1, 2))
    across, along = np.arange(width) - x, np.arange(height)[:, None] - y
    area = right * down_too - down * right_too
    first = (across * down_too - along * right_too) / area
    second = (along * right - across * down) / area
    (x_edge, y_edge), (x_edge_too, y_edge_too) = before[1] - before[0], before[2] - before[0]
    columns = before[0, 0] + first * x_edge + second * x_edge_too
    rows = before[0, 1] + first * y_edge + second * y_edge_too
    return rows, columns


def at(pixels: Pixels, rows: Indices, columns: Indices) -> Pixels:
    """Each image's pixels at (N, H, W) places of its own, as (N, C, H, W)."""
    flat = pixels.reshape(*pixels.shape[:2], -1)
    places = (rows * pixels.shape[3] + columns).reshape(len(pixels), 1, -1)
    return np.take_along_axis(flat, places, axis=2).reshape(*pixels.shape[:2], *rows.shape[1:])


def _folded(places: Places, length: int, repeat_edge: bool) -> Indices:
    """Places anywhere as indices in an image that is mirrored without end."""
    whole = places.astype(np.int64)
    if repeat_edge:
        within = whole % (2 * length)
        return np.minimum(within, 2 * length - 1 - within)
    within = whole % (2 * length - 2)
    return np.minimum(within, 2 * length - 2 - within)
