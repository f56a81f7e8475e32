"""Parts that share no class."""

from __future__ import annotations

from typing import Literal

from tasks.data.partitions import Partition


class ClassRanges(Partition):
    """Contiguous ranges of classes, as COLT trains on (Hossain et al. 2022, arXiv:2212.12770, section 3).

    Training, validation and test keep only the range's classes, whose labels then start at zero. Where `parts` does
    not divide the number of classes, the first parts have one class more.
    """

    kind: Literal["class-ranges"] = "class-ranges"

    def class_range(self, classes: int) -> range:
        """The `index`-th of `parts` ranges.

        Raises:
            ValueError: there are fewer classes than parts.
        """
        if self.parts > classes:
            raise ValueError(f"{self.parts} class ranges cannot be made of {classes} classes; allowed: 1 to {classes}")
        size, larger = divmod(classes, self.parts)
        start = self.index * size + min(self.index, larger)
        return range(start, start + size + (self.index < larger))
