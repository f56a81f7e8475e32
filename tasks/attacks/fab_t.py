"""The attack on one boundary after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field

from tasks.attacks.nearest_boundary import NearestBoundary


class FABT(NearestBoundary):
    """Targeted FAB: walks to the boundaries of the likeliest other classes in turn (Croce & Hein 2020, AutoAttack).

    Any mistake met on the way counts, not only the target.
    """

    kind: Literal["fab-t"] = "fab-t"
    targets: int = Field(default=9, ge=1)
    """Classes to walk towards, the likeliest first; all others if there are no more."""

    def rounds(self, rivals: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One for each target."""
        return tuple(target.unsqueeze(1) for target in rivals[:, : self.targets].unbind(dim=1))

    def fallbacks(self, classes: int) -> Iterator[str]:
        """Fewer targets."""
        if classes <= self.targets:
            yield f"fab-t tries {classes - 1} targets, not {self.targets}: the data have {classes} classes"
