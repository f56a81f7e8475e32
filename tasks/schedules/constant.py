"""The constant schedule."""

from __future__ import annotations

from typing import Literal

from tasks.schedules import Schedule


class Constant(Schedule):
    """The peak learning rate throughout."""

    kind: Literal["constant"] = "constant"

    def shape(self, progress: float) -> float:
        """One."""
        return 1.0
