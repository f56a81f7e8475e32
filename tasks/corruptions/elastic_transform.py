"""Stretched and bent images."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from tasks.attacks.draws import Draws
from tasks.corruptions import Corruption, Pixels
from tasks.corruptions.sampling import sampled, stretched
from tasks.corruptions.smoothing import smoothed


class ElasticTransform(Corruption):
    """A random affine map, then a random smooth displacement (Hendrycks & Dietterich 2019, after Simard et al. 2003).

    The published images were interpolated by OpenCV at thirty-seconds of a pixel, these exactly. The first severity is
    an affine map alone. It weakens from one severity to the next while the bending grows, so the pixels change less.
    """

    kind: Literal["elastic-transform"] = "elastic-transform"

    strengths: ClassVar = ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
    """Size of the displacement, its smoothness, and how far the affine map moves three points, at most: all as shares
    of the image's shorter side."""

    def distort(self, pixels: Pixels, severity: int, draws: Draws) -> Pixels:
        """Moves the image twice, mirroring it beyond its edges."""
        height, width = pixels.shape[2:]
        size, smoothness, shift = (share * min(height, width) for share in self.strengths[severity - 1])
        third = min(height, width) // 3
        corners = np.array([[third, third], [third, -third], [-third, -third]]) + np.array([width // 2, height // 2])
        shaken = corners + shift * (draws.uniform((3, 2), "corners").double().numpy() * 2 - 1)
        moved = sampled(pixels, *stretched(height, width, corners, shaken), repeat_edge=False)
        noise = draws.uniform((2, height, width), "displacement").double().numpy() * 2 - 1
        bend = size * smoothed(noise, smoothness, mode="reflect", truncate=3)
        return sampled(moved, np.arange(height)[:, None] + bend[:, 0], np.arange(width) + bend[:, 1], repeat_edge=True)
