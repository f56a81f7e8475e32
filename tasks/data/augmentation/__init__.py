"""Augmentations: random changes to training images that keep their labels."""

from __future__ import annotations

import torch

from tasks.component import Component


class Augmentation(Component):
    """A random change to images, split in two so that any batch of an epoch can be made again.

    `draw` decides, once an epoch and on the CPU; `augment` carries out, batch by batch and where the images are. An
    epoch resumed in the middle, or continued on another device, thus sees the images it would have seen.
    """

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """All random decisions for an epoch of `count` examples: (count, D) int64, a row for each in epoch order."""
        raise NotImplementedError

    def augment(self, images: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """The changed images; does not write into `images`.

        Args:
            images: (N, C, H, W) uint8.
            drawn: (N, D) int64, the rows drawn for these examples, on the same device.
        """
        raise NotImplementedError
