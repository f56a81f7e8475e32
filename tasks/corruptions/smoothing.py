"""Smoothing as scikit-image does it, for all images of a batch at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tasks.corruptions import Pixels


def smoothed(pixels: Pixels, sigma: float, *, mode: str = "nearest", truncate: float = 4) -> Pixels:
    """Each image convolved with a Gaussian.

    Args:
        pixels: (N, C, H, W).
        sigma: standard deviation in pixels; 0 changes nothing.
        mode: how images go on beyond their edges, in the words of `scipy.ndimage`.
        truncate: standard deviations after which the kernel ends.
    """
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(pixels, (0, 0, sigma, sigma), mode=mode, truncate=truncate), dtype=np.float64)


def filtered(pixels: Pixels, kernel: NDArray[np.float64]) -> Pixels:
    """Each image correlated with a (k, k) kernel; edges are mirrored and not repeated."""
    from scipy.ndimage import correlate

    return np.asarray(correlate(pixels, kernel[None, None], mode="mirror"), dtype=np.float64)
