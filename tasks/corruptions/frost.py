"""Ice on a window."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from tasks.attacks.draws import Draws
from tasks.corruptions import Corruption, Pixels, tinted
from tasks.corruptions.plasma import plasma

_PANES = np.array([[0.27, 0.56, 0.63], [0.80, 0.82, 0.86], [0.80, 0.82, 0.86], [0.55, 0.61, 0.66], [0.41, 0.45, 0.50]])
"""Mean colours of the five photographs."""
_ROUGHNESS = np.array([0.057, 0.062, 0.062, 0.108, 0.127])
"""Standard deviation of their pixels within 32x32."""
_UNEVENNESS = 0.035
"""Standard deviation of the means of such crops."""


class Frost(Corruption):
    """An image behind ice crystals (Hendrycks & Dietterich 2019); C-like, not equal to the pixel.

    The published images show crops of photographs. Here the ice is drawn: sharp ridges of rough fractals, with the mean
    colours and deviations of the five photographs that the published code uses, and a correlation between neighbouring
    pixels (0.4) within their range. From the third severity on the image is dimmed too, so bright ones change less.
    """

    kind: Literal["frost"] = "frost"

    strengths: ClassVar = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
    """Weights of the image and of the ice."""

    def distort(self, pixels: Pixels, severity: int, draws: Draws) -> Pixels:
        """Adds the ice to the dimmed image."""
        image, ice = self.strengths[severity - 1]
        frosted: Pixels = image * pixels + ice * _ice(pixels, draws)
        return frosted


def _ice(pixels: Pixels, draws: Draws) -> Pixels:
    """(N, C, H, W): a pane for each example."""
    channels, height, width = pixels.shape[1:]
    ridges = _ridges(height, width, draws)
    pane = draws.integers(len(_PANES), (), "pane").numpy()
    shade = _UNEVENNESS * draws.normal((1, 1, 1), "shade").double().numpy()
    relief = _ROUGHNESS[pane][:, None, None, None] * ridges
    ice: Pixels = (tinted(_PANES[pane], channels) + shade + relief).clip(0, 1)
    return ice


def _ridges(height: int, width: int, draws: Draws) -> Pixels:
    """(N, 1, H, W), mean 0 and deviation 1 in each image: bright where a fractal crosses its middle height."""
    crests = np.zeros((len(draws), 1, height, width))
    for decay, grain in ((1.4, "coarse"), (0.9, "fine")):
        crests += (1 - np.abs(2 * plasma(height, width, decay, draws.under(grain)) - 1)) ** 3
    crests -= crests.mean(axis=(1, 2, 3), keepdims=True)
    crests /= crests.std(axis=(1, 2, 3), keepdims=True)
    return crests
