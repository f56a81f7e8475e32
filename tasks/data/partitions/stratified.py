"""Parts with the class frequencies of the whole."""

from __future__ import annotations

from typing import Literal

import numpy as np

from tasks.data.partitions import Partition
from tasks.data.splits import Labels, Positions, class_by_class


class Stratified(Partition):
    """Random parts of the training examples, equal up to one in size and in every class (Kohavi 1995, section 2).

    Validation and test stay whole, so that parts are compared on the same examples.
    """

    kind: Literal["stratified"] = "stratified"

    def choose(self, labels: Labels, seed: int) -> Positions:
        """Every `parts`-th example of an order that is random within each class."""
        return np.sort(class_by_class(labels, seed, "partition")[self.index :: self.parts])
