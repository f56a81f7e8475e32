"""Pictures to corrupt, and corruptions by their names, for the tests."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from tasks.attacks.draws import Draws
from tasks.component import members
from tasks.corruptions import Corruption, Pixels, truncated
from tasks.corruptions.plasma import plasma


def corrupt(kind: str, images: torch.Tensor, severity: int, seed: int = 0, first: int = 0) -> torch.Tensor:
    corruption: Corruption = members(Corruption)[kind]()
    return corruption.corrupt(images, severity, Draws(seed, torch.arange(first, first + len(images))))


def distorted(kind: str, pixels: Pixels, severity: int) -> Pixels:
    corruption: Corruption = members(Corruption)[kind]()
    return corruption.distort(pixels, severity, Draws(0, torch.arange(len(pixels))))


@cache
def pictures(count: int = 48, channels: int = 3, height: int = 32, width: int = 32) -> torch.Tensor:
    """Images with large shapes, fine texture, colours, dark and bright places."""
    draws = Draws(7, torch.arange(count))
    land = [plasma(height, width, decay, draws.under(place)) for place, decay in enumerate((1.7, 1.4, 1.4, 1.4))]
    mixed = np.concatenate([0.75 * land[0] + 0.25 * tint for tint in land[1 : 1 + channels]], axis=1)
    return torch.from_numpy(truncated(mixed * 1.2 - 0.1))


def flat(level: int, channels: int = 3, size: int = 32, count: int = 4) -> torch.Tensor:
    return torch.full((count, channels, size, size), level, dtype=torch.uint8)


def impulse(size: int = 15) -> Pixels:
    pixels = np.zeros((1, 1, size, size))
    pixels[0, 0, size // 2, size // 2] = 1
    return pixels
