"""Corruptions: what weather, cameras and storage do to images, without meaning to fool anyone."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.attacks.draws import Draws
from tasks.component import Component, kind_of, members

Pixels = NDArray[np.float64]
"""(N, C, H, W) in [0, 1], or layers of that layout."""

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 8
"""Pixels that each side of an image must have."""

BENCHMARK = (
    "gaussian-noise",
    "shot-noise",
    "impulse-noise",
    "defocus-blur",
    "glass-blur",
    "motion-blur",
    "zoom-blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic-transform",
    "pixelate",
    "jpeg-compression",
)
"""The fifteen whose mean is reported; the other four are for choosing by (Hendrycks & Dietterich 2019)."""

_ROUNDING = 1e-6


class Corruption(Component):
    """A common corruption at five severities, C-like: after the script that made CIFAR-10-C, `make_cifar_c.py`.

    Severities are those for 32x32 images (Hendrycks & Dietterich 2019), kept in pixels where they are in pixels. The
    images are not those of CIFAR-10-C, and accuracies are not to be listed beside its own:

    - defocus-blur, gaussian-blur, zoom-blur, brightness, contrast, saturate and pixelate compute what the script does,
      but for rounding; jpeg-compression does with the same JPEG library;
    - the noises, glass-blur, fog, elastic-transform and motion-blur are its formulas with other random numbers, and
      the last two interpolate and round otherwise than its libraries;
    - snow, spatter and frost have its severities and come from their own code; frost has drawn textures in place of
      photographs.
    """

    def corrupt(self, images: torch.Tensor, severity: int, draws: Draws) -> torch.Tensor:
        """Corrupted images, (N, C, H, W) uint8: values are cut off to whole levels, as the published ones are.

        What becomes of an image depends on the draws' seed, its example, the corruption and the severity alone.

        Args:
            images: (N, C, H, W) uint8 on the CPU, C is 1 or 3, H and W at least 8.
            severity: 1 to 5.
            draws: the only source of randomness: N examples.

        Raises:
            ValueError: an argument is not as described.
        """
        _check(images, severity, draws)
        if not len(images):
            return images.clone()
        distorted = self.distort(images.numpy() / 255, severity, draws.under(kind_of(type(self)), severity))
        return torch.from_numpy(truncated(distorted))

    def distort(self, pixels: Pixels, severity: int, draws: Draws) -> Pixels:
        """What a member does in `corrupt`: values outside [0, 1] are clipped after it; `pixels` are its own."""
        raise NotImplementedError


class Graded(Corruption):
    """A corruption whose severities are five values of one number."""

    strengths: ClassVar[tuple[float, float, float, float, float]]

    def strength(self, severity: int) -> float:
        """The number at this severity."""
        return self.strengths[severity - 1]


def benchmark() -> tuple[Corruption, ...]:
    """The fifteen corruptions whose mean is reported, in the published order."""
    known = members(Corruption)
    return tuple(known[kind]() for kind in BENCHMARK)


def truncated(pixels: Pixels) -> NDArray[np.uint8]:
    """Values in [0, 1], clipped to it, as bytes: the largest level that is not above."""
    # A whole level but for the last bits, such as a clean pixel divided and multiplied by 255, stays that level.
    return np.asarray(pixels.clip(0, 1) * 255 + _ROUNDING, dtype=np.uint8)


def luma(pixels: Pixels) -> Pixels:
    """(N, 1, H, W), how bright each pixel is to the eye (ITU-R BT.601); grey images as they are."""
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels[:, :1], pixels[:, 1:2], pixels[:, 2:]
    return 0.299 * red + 0.587 * green + 0.114 * blue


def tinted(colour: NDArray[np.float64], channels: int) -> Pixels:
    """A colour, or one for each of N images, (..., 3), as (-1, C, 1, 1): grey images get how bright it is."""
    colours = colour.reshape(-1, 3, 1, 1)
    return colours if channels == 3 else luma(colours)


def _check(images: torch.Tensor, severity: int, draws: Draws) -> None:
    if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be (N, 1 or 3, H, W) uint8, found {tuple(images.shape)} {images.dtype}")
    if min(images.shape[2:]) < SMALLEST:
        raise ValueError(f"images must be {SMALLEST}x{SMALLEST} or larger, found {tuple(images.shape[2:])}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be 1 to 5, found {severity}")
    if len(draws) != len(images):
        raise ValueError(f"draws must be for {len(images)} examples, found {len(draws)}")
