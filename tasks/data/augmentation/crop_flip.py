"""Shifted and mirrored images."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch.nn import functional as F

from tasks.data.augmentation import Augmentation


class CropFlip(Augmentation):
    """Zero-padded random crop and horizontal flip, the usual for CIFAR (He et al. 2016, section 4.2)."""

    kind: Literal["crop-flip"] = "crop-flip"

    padding: int = Field(default=4, ge=0)
    """Black pixels added to each side before the crop: the largest shift."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip; 0 where left and right matter, as in digits."""

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Columns: top and left edge of the crop in the padded image, and whether to flip (0 or 1)."""
        edges = torch.randint(2 * self.padding + 1, (count, 2), generator=generator)
        flips = torch.rand(count, 1, generator=generator) < self.flip
        return torch.cat([edges, flips.to(torch.int64)], dim=1)

    def augment(self, images: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """Crops every padded image at its own edges, then flips those that are to be flipped."""
        height, width = images.shape[2:]
        top, left, flipped = drawn.unbind(dim=1)
        padded = F.pad(images, (self.padding,) * 4)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view (N, C, tops, lefts, H, W)
        cropped = windows[torch.arange(len(images), device=images.device), :, top, left]
        return torch.where(flipped.bool()[:, None, None, None], cropped.flip(3), cropped)
