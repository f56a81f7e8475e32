"""Data sets: real images in [0, 1], split so that nothing is ever selected on the test part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from tasks.component import Component

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Signature:
    """What a model must know of its data."""

    channels: int
    height: int
    width: int
    classes: int
    mean: tuple[float, ...]
    """Per channel, of pixels in [0, 1]."""
    std: tuple[float, ...]


@dataclass(frozen=True)
class Examples:
    """Images and labels of one split, in a fixed order."""

    images: torch.Tensor
    """(N, C, H, W) uint8; a pixel's value in [0, 1] is its byte divided by 255."""
    labels: torch.Tensor
    """(N,) int64."""

    def __len__(self) -> int:
        return len(self.labels)


class Dataset(Component):
    """Labelled images."""

    elidable: ClassVar[bool] = False

    def fingerprint(self) -> str:
        """A digest of the data's content, the same on every machine.

        Raises:
            ValueError: the data are missing or damaged; says which file and what to do.
        """
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """The configuration together with the content of the data."""
        return {**super().identity(), "fingerprint": self.fingerprint()}

    def signature(self) -> Signature:
        """Shape, classes and statistics."""
        raise NotImplementedError

    def load(self, split: Split) -> Examples:
        """The examples of one split, backed by a memory map that the workers of a node share.

        Raises:
            ValueError: the data are missing or damaged.
        """
        raise NotImplementedError
