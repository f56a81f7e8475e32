"""Parts drawn without regard to the classes."""

from __future__ import annotations

from typing import Literal

import numpy as np

from tasks.data.partitions import Partition
from tasks.data.splits import Labels, Positions, shuffled


class Iid(Partition):
    """Uniformly random parts of the training examples, equal in size up to one (McMahan et al. 2017, section 3).

    Validation and test stay whole, so that parts are compared on the same examples.
    """

    kind: Literal["iid"] = "iid"

    def choose(self, labels: Labels, seed: int) -> Positions:
        """Every `parts`-th example of a random order."""
        return np.sort(shuffled(len(labels), seed, "partition")[self.index :: self.parts])
