"""Data sets: real images in [0, 1], split so that nothing is ever selected on the test part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from tasks.component import Component, kind_of
from tasks.data.partitions import Partition
from tasks.data.prepared import Labelled, prepare
from tasks.data.splits import Labels, Positions, noisy, stratified

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
    """Labelled images.

    A member says what its content is (`fingerprint`), what it looks like (`whole`) and how to decode it (`read`). What
    is made of it is the same for all, in this order: validation examples are held out of the training part, the rest is
    reduced to a subset, the partition chooses among it, and label noise is added to what is then trained on. The test
    part is left alone, except that a partition by classes keeps only its own.
    """

    elidable: ClassVar[bool] = False

    validation: int | None = Field(default=None, ge=0)
    """Examples held out of the training part, stratified; a tenth of it if not given. Their labels stay clean."""
    subset: int | None = Field(default=None, ge=1)
    """Training examples to keep, stratified, before a partition divides them; all if not given."""
    partition: Partition | None = None
    """Which part of the training examples or of the classes to use."""
    label_noise: float = Field(default=0, ge=0, le=1)
    """Share of training labels changed to another class, all others equally likely."""
    split_seed: int = Field(default=0, ge=0)
    """Decides which examples are held out, kept and mislabelled, and which part they fall into."""

    def fingerprint(self) -> str:
        """A digest of the data's content, the same on every machine.

        Raises:
            ValueError: the data are missing or damaged; says which file and what to do.
        """
        raise NotImplementedError

    def whole(self) -> Signature:
        """Shape, classes and training statistics before any partition.

        Raises:
            ValueError: the data are needed for this and missing or damaged.
        """
        raise NotImplementedError

    def read(self) -> tuple[Labelled, Labelled]:
        """Decodes the training and the test part, labels in `range(classes)`; slow, called once per node.

        Raises:
            ValueError: the data are missing or damaged.
        """
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """The configuration together with the content of the data."""
        return {**super().identity(), "fingerprint": self.fingerprint()}

    def signature(self) -> Signature:
        """Shape, classes and statistics; the statistics are those of the whole training part.

        Raises:
            ValueError: the partition does not fit the classes, or the data are needed for this and missing.
        """
        whole = self.whole()
        return replace(whole, classes=len(self._classes(whole.classes)))

    def load(self, split: Split) -> Examples:
        """The examples of one split, in the order of the source.

        A split that is one stretch of the source, as the test part is, comes as a memory map that the workers of a node
        share; any other is a copy.

        Raises:
            ValueError: the data are missing or damaged, or too few for what is asked of them.
        """
        arrays = prepare(self.fingerprint(), self.read)
        source = arrays.test if split == "test" else arrays.train
        classes = self._classes(self.whole().classes)
        positions = self._positions(split, source.labels, classes)
        if not len(positions):
            raise ValueError(f"the {split} split is empty: {self._asked_of(len(arrays.train.labels))}")
        labels = source.labels[positions] - classes.start
        if split == "train":
            labels = noisy(labels, positions, self.label_noise, len(classes), self.split_seed, "noise")
        return Examples(_rows(source.images, positions), torch.from_numpy(labels))

    def _classes(self, classes: int) -> range:
        return self.partition.class_range(classes) if self.partition else range(classes)

    def _positions(self, split: Split, labels: Labels, classes: range) -> Positions:
        """Where the examples of this split are in the training part, or in the test part."""
        positions = np.arange(len(labels))
        if split != "test":
            held_out = self._held_out(labels)
            positions = held_out if split == "validation" else np.delete(positions, held_out)
        if split == "train" and self.subset is not None:
            if self.subset > len(positions):
                raise ValueError(f"too few training examples: {self._asked_of(len(labels))}")
            positions = positions[stratified(labels[positions], self.subset, self.split_seed, "subset")]
        chosen = labels[positions]
        positions = positions[(classes.start <= chosen) & (chosen < classes.stop)]
        if split == "train" and self.partition:
            positions = positions[self.partition.choose(labels[positions], self.split_seed)]
        return positions

    def _held_out(self, labels: Labels) -> Positions:
        count = len(labels) // 10 if self.validation is None else self.validation
        if count >= len(labels):
            raise ValueError(f"too few training examples: {self._asked_of(len(labels))}")
        return stratified(labels, count, self.split_seed, "validation")

    def _asked_of(self, available: int) -> str:
        validation = available // 10 if self.validation is None else self.validation
        subset = "" if self.subset is None else f" and `subset` = {self.subset}"
        part = "" if self.partition is None else f", part {self.partition.index} of {self.partition.parts}"
        return f"`validation` = {validation}{subset} are taken from the {available} of {kind_of(type(self))}{part}"


def _rows(images: np.ndarray[Any, np.dtype[np.uint8]], positions: Positions) -> torch.Tensor:
    first, last = int(positions[0]), int(positions[-1]) + 1
    if last - first == len(positions):  # ascending, so one stretch: no copy
        return torch.from_numpy(images[first:last])
    return torch.from_numpy(images).index_select(0, torch.from_numpy(positions))
