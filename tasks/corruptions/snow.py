"""Falling snow."""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import numpy as np

from tasks.attacks.draws import Draws
from tasks.corruptions import Corruption, Pixels, luma, truncated
from tasks.corruptions.sampling import zoomed
from tasks.corruptions.streaks import streaked


class _Strength(NamedTuple):
    mean: float
    """Of the flakes' noise."""
    deviation: float
    zoom: float
    """How much the flakes are magnified."""
    threshold: float
    """Of the noise, from which there is a flake."""
    radius: float
    """Of the flakes' smear, in pixels."""
    sigma: float
    clear: float
    """Share of the image that is not whitened."""


class Snow(Corruption):
    """Smeared flakes before a whitened image (Hendrycks & Dietterich 2019); C-like, not equal to the pixel.

    The published images were made with ImageMagick, whose smear is written anew here.
    """

    kind: Literal["snow"] = "snow"

    strengths: ClassVar = (
        _Strength(0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        _Strength(0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        _Strength(0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        _Strength(0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        _Strength(0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )

    def distort(self, pixels: Pixels, severity: int, draws: Draws) -> Pixels:
        """Whitens the image and lets flakes fall in one direction and, turned by 180 degrees, in the other."""
        strength = self.strengths[severity - 1]
        noise = draws.normal((1, *pixels.shape[2:]), "flakes").double().numpy()
        layer = zoomed(strength.mean + strength.deviation * noise, strength.zoom)
        flakes = truncated(np.where(layer < strength.threshold, 0, layer)) / 255
        degrees = draws.uniform((), "angle").double().numpy() * 90 - 135
        flakes = streaked(flakes, strength.radius, strength.sigma, degrees)
        whitened = np.maximum(pixels, luma(pixels) * 1.5 + 0.5)
        veiled = strength.clear * pixels + (1 - strength.clear) * whitened
        return veiled + flakes + flakes[:, :, ::-1, ::-1]
