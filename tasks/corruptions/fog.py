"""Fog in drifts."""

from __future__ import annotations

from typing import ClassVar, Literal

from tasks.attacks.draws import Draws
from tasks.corruptions import Corruption, Pixels
from tasks.corruptions.plasma import plasma


class Fog(Corruption):
    """Clouds that are added to an image and leave it less contrast (Hendrycks & Dietterich 2019).

    Images of another size than a power of two get a part of a larger cloud.
    """

    kind: Literal["fog"] = "fog"

    strengths: ClassVar = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))
    """Greatest density, and how fast the clouds' roughness falls with scale."""

    def distort(self, pixels: Pixels, severity: int, draws: Draws) -> Pixels:
        """Adds the clouds and scales the sum back to the image's brightest value."""
        density, decay = self.strengths[severity - 1]
        height, width = pixels.shape[2:]
        brightest: Pixels = pixels.max(axis=(1, 2, 3), keepdims=True)
        foggy = pixels + density * plasma(height, width, decay, draws)
        return foggy * brightest / (brightest + density)
