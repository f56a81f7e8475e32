"""Traces of compression."""

from __future__ import annotations

from io import BytesIO
from typing import ClassVar, Literal

from PIL import Image

from tasks.attacks.draws import Draws
from tasks.corruptions import Graded, Pixels
from tasks.corruptions.pictures import each_picture


class JpegCompression(Graded):
    """An image saved as JPEG and read again (Hendrycks & Dietterich 2019); another JPEG library may round otherwise."""

    kind: Literal["jpeg-compression"] = "jpeg-compression"

    strengths: ClassVar = (80, 65, 58, 50, 40)
    """JPEG quality."""

    def distort(self, pixels: Pixels, severity: int, draws: Draws) -> Pixels:
        """Compresses with Pillow, as the published code does."""
        quality = int(self.strength(severity))

        def compressed(picture: Image.Image) -> Image.Image:
            content = BytesIO()
            picture.save(content, "JPEG", quality=quality)
            return Image.open(content)

        return each_picture(pixels, compressed)
