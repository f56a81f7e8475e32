"""Magnitude: small weights go first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from tasks.pruning import Saliency
from tasks.pruning.mask import Mask


class Magnitude(Saliency):
    """Magnitude, the absolute value of a weight (Han et al. 2015; Frankle & Carbin 2019)."""

    kind: Literal["magnitude"] = "magnitude"

    def score(
        self, weights: Mapping[str, torch.Tensor], mask: Mask, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """|w| for every weight."""
        return {name: weight.abs() for name, weight in weights.items()}
