"""Batches: the order of examples in an epoch, as tensors on the device that trains."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tasks.data import Examples
from tasks.data.augmentation import Augmentation
from tasks.data.augmentation.none import Unchanged
from tasks.seeds import generator

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Images (N, C, H, W) float32 in [0, 1], labels (N,) int64, and the examples' places in their split, (N,) int64."""


class Loader:
    """Training batches in an order that depends on the seed and the epoch alone.

    The examples move to the device once and stay there as bytes; each batch is gathered, augmented and divided by 255
    on the device. On the CPU they stay in the memory map that they came from.

    Args:
        examples: what to iterate over.
        batch_size: examples in a batch.
        device: where the batches are wanted.
        augmentation: random changes to the images.
        drop_last: whether to leave out the last batch when it is short.
        channels_last: whether images are laid out for convolutions on tensor cores; the values are the same.
        part: which part of each batch to yield, and of how many: parts are contiguous and nearly of one length.

    Raises:
        ValueError: there is not one batch to yield, or the last of an epoch has too few examples for its parts.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        device: torch.device | str = "cpu",
        augmentation: Augmentation | None = None,
        drop_last: bool = False,
        channels_last: bool = False,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        if batch_size < 1 or len(examples) < (batch_size if drop_last else 1):
            raise ValueError(f"no batch of {batch_size} can be made of {len(examples)} examples")
        self._images = examples.images.to(device)
        self._labels = examples.labels.to(device)
        self._batch_size = batch_size
        self._augmentation = augmentation or Unchanged()
        self._whole = len(examples) // batch_size * batch_size if drop_last else len(examples)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._part = part
        last = (self._whole - 1) % batch_size + 1
        if last < part[1]:
            raise ValueError(f"the last batch of an epoch has {last} examples, too few for {part[1]} parts")

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-self._whole // self._batch_size)

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number `start` on, the same ones whether or not earlier ones were taken."""
        device, count = self._labels.device, len(self._labels)
        order = torch.randperm(count, generator=generator(seed, "order", epoch)).to(device)
        drawn = self._augmentation.draw(count, generator(seed, "augmentation", epoch)).to(device)
        for first in range(start * self._batch_size, self._whole, self._batch_size):
            batch = self._slice(first)
            rows = order[batch]
            images = self._augmentation.augment(self._images.index_select(0, rows), drawn[batch])
            yield _in_unit_interval(images, self._layout), self._labels.index_select(0, rows), rows

    def _slice(self, first: int) -> slice:
        """Where in the order of the epoch the part lies of the batch that begins here."""
        count, (place, parts) = min(self._batch_size, self._whole - first), self._part
        return slice(first + place * count // parts, first + (place + 1) * count // parts)


def in_order(
    examples: Examples, batch_size: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """All examples in their own order and as they are, for evaluation; the last batch may be short."""
    for first in range(0, len(examples), batch_size):
        batch = slice(first, first + batch_size)
        yield (
            _in_unit_interval(examples.images[batch].to(device), torch.contiguous_format),
            examples.labels[batch].to(device),
        )


def _in_unit_interval(images: torch.Tensor, layout: torch.memory_format) -> torch.Tensor:
    return images.to(torch.float32, memory_format=layout).div_(255)
