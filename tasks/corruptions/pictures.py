"""Images handed to Pillow one by one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from tasks.corruptions import Pixels


def each_picture(pixels: Pixels, change: Callable[[Image.Image], Image.Image]) -> Pixels:
    """Images (N, C, H, W) in [0, 1], whole levels, each changed by Pillow."""
    levels = np.rint(pixels * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    grey = pixels.shape[1] == 1
    changed = [np.asarray(change(Image.fromarray(image[..., 0] if grey else image))) for image in levels]
    return np.stack(changed).reshape(levels.shape).transpose(0, 3, 1, 2) / 255
