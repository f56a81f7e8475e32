"""Too few pixels."""

from __future__ import annotations

from typing import ClassVar, Literal

from PIL import Image

from tasks.attacks.draws import Draws
from tasks.corruptions import Graded, Pixels
from tasks.corruptions.pictures import each_picture


class Pixelate(Graded):
    """An image made smaller and back by box averages (Hendrycks & Dietterich 2019)."""

    kind: Literal["pixelate"] = "pixelate"

    strengths: ClassVar = (0.95, 0.9, 0.85, 0.75, 0.65)
    """Share of the rows and columns that the small image has."""

    def distort(self, pixels: Pixels, severity: int, draws: Draws) -> Pixels:
        """Resizes with Pillow, as the published code does."""
        height, width = pixels.shape[2:]
        share = self.strength(severity)
        small = (int(width * share), int(height * share))

        def coarse(picture: Image.Image) -> Image.Image:
            return picture.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX)

        return each_picture(pixels, coarse)
