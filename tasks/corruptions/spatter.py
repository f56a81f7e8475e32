"""Drops of water or mud on the lens."""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.attacks.draws import Draws
from tasks.corruptions import Corruption, Pixels, tinted
from tasks.corruptions.outlines import outlines
from tasks.corruptions.smoothing import filtered, smoothed

_WATER = np.array([175, 238, 238]) / 255
_MUD = np.array([63, 42, 20]) / 255
_FARTHEST = 20
_EMBOSS = np.array([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]])
_BOX = np.full((3, 3), 1 / 9)


class _Strength(NamedTuple):
    mean: float
    """Of the noise that becomes drops."""
    deviation: float
    sigma: float
    """Smoothness of the noise, in pixels."""
    threshold: float
    """Of the noise, from which there is a drop."""
    amount: float
    """Greatest brightness of water, or smoothness of mud's edges in pixels."""
    is_mud: bool


class Spatter(Corruption):
    """Water or mud on the lens (Hendrycks & Dietterich 2019), one of the four extra ones; not equal to the pixel.

    Severities 1 to 3 are shining drops, 4 and 5 opaque splashes of mud, which cover less. The published drops were
    drawn with OpenCV's edges and distances; here both are written anew, and distances are exact.
    """

    kind: Literal["spatter"] = "spatter"

    strengths: ClassVar = (
        _Strength(0.62, 0.1, 0.7, 0.7, 0.5, False),
        _Strength(0.65, 0.1, 0.8, 0.7, 0.5, False),
        _Strength(0.65, 0.3, 1, 0.69, 0.5, False),
        _Strength(0.65, 0.1, 0.7, 0.69, 0.6, True),
        _Strength(0.65, 0.1, 0.5, 0.68, 0.6, True),
    )

    def distort(self, pixels: Pixels, severity: int, draws: Draws) -> Pixels:
        """Thresholds smooth noise to drops, and lays them over the image."""
        strength = self.strengths[severity - 1]
        channels, height, width = pixels.shape[1:]
        noise = draws.normal((1, height, width), "drops").double().numpy()
        layer = smoothed(strength.mean + strength.deviation * noise, strength.sigma)
        if strength.is_mud:
            mud = smoothed((layer > strength.threshold).astype(np.float64), strength.amount)
            mud[mud < 0.8] = 0
            return pixels * (1 - mud) + mud * tinted(_MUD, channels)
        layer[layer < strength.threshold] = 0
        return pixels + strength.amount * _shine(layer) * tinted(_WATER, channels)


def _shine(layer: Pixels) -> Pixels:
    """How bright the water is, up to 1 in each image: drops stand out against the light from one corner."""
    from scipy.ndimage import distance_transform_edt

    drops = np.floor(layer.clip(0, 1) * 255)
    # Pixels of other images are a million away, and so beyond the farthest distance that counts.
    away = distance_transform_edt(~outlines(drops[:, 0]), sampling=(1e6, 1, 1))[:, None]
    height = _equalised(np.rint(filtered(away.clip(max=_FARTHEST), _BOX)).astype(np.uint8))
    relief = filtered(np.rint(filtered(height, _EMBOSS)).clip(0, 255), _BOX)
    light: Pixels = drops * relief
    brightest: Pixels = light.max(axis=(1, 2, 3), keepdims=True)
    return light / np.where(brightest == 0, 1, brightest)  # without a drop there is no light


def _equalised(levels: NDArray[np.uint8]) -> Pixels:
    """Each image's levels spread over 0 to 255 by their ranks; an image of one level stays as it is."""
    flat = levels.reshape(len(levels), -1)
    counts = np.stack([np.bincount(image, minlength=256) for image in flat])
    lowest = flat.min(axis=1, keepdims=True)
    floor = np.take_along_axis(counts, lowest, axis=1)
    above = flat.shape[1] - floor
    ranks = (counts.cumsum(axis=1) - floor) * 255 / np.where(above == 0, 1, above)
    spread = np.where(above == 0, flat, np.take_along_axis(np.rint(ranks), flat, axis=1))
    return spread.reshape(levels.shape).astype(np.float64)
