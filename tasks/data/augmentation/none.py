"""Images as they are."""

from __future__ import annotations

from typing import Literal

import torch

from tasks.data.augmentation import Augmentation


class Unchanged(Augmentation):
    """No augmentation."""

    kind: Literal["none"] = "none"

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Nothing to decide: (count, 0)."""
        return torch.empty(count, 0, dtype=torch.int64)

    def augment(self, images: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """The images themselves."""
        return images
