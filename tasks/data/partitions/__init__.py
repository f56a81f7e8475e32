"""Partitions: which part of the training examples, or of the classes, one worker sees."""

from __future__ import annotations

from typing import Self

import numpy as np
from pydantic import Field, model_validator

from tasks.component import Component
from tasks.data.splits import Labels, Positions


class Partition(Component):
    """One of several parts of a data set that are disjoint and together complete."""

    parts: int = Field(ge=1)
    """How many parts there are."""
    index: int = Field(ge=0)
    """Which one this is, counted from zero."""

    @model_validator(mode="after")
    def _index_is_a_part(self) -> Self:
        if self.index >= self.parts:
            raise ValueError(f"index {self.index} is not one of {self.parts} parts; allowed: 0 to {self.parts - 1}")
        return self

    def class_range(self, classes: int) -> range:
        """The classes of this part, out of `range(classes)`; examples of others are left out of every split.

        Raises:
            ValueError: there are too few classes for so many parts.
        """
        return range(classes)

    def choose(self, labels: Labels, seed: int) -> Positions:
        """Which training examples belong to this part, as ascending positions into `labels`.

        Args:
            labels: (N,) of the training examples in the class range.
            seed: the data set's split seed; every part must be asked with the same one.
        """
        return np.arange(len(labels))
