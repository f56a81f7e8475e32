"""The attack on whichever boundary is closest."""

from __future__ import annotations

from typing import Literal

import torch

from tasks.attacks.nearest_boundary import NearestBoundary


class FAB(NearestBoundary):
    """Fast adaptive boundary attack: walks to the closest of all decision boundaries (Croce & Hein 2020, algorithm 1).

    Every step takes a backward pass for each class but the label's. `FABT` takes one, and is the choice for many
    classes.
    """

    kind: Literal["fab"] = "fab"

    def rounds(self, rivals: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One, towards any other class."""
        return (rivals,)
