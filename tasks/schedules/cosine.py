"""The cosine schedule."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from tasks.schedules import Schedule


class Cosine(Schedule):
    """Half a cosine from the end of the warm-up to the end (Loshchilov & Hutter 2017, eq. 5, one cycle)."""

    kind: Literal["cosine"] = "cosine"
    final: float = Field(default=0, ge=0, lt=1)
    """The factor that is approached at the end."""

    def shape(self, progress: float) -> float:
        """One until the warm-up is over, then down towards `final`."""
        fallen = max(progress - self.warmup, 0) / (1 - self.warmup)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * fallen)) / 2
