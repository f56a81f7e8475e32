"""Magnitude: small weights go first."""

from __future__ import annotations

from typing import Literal

import torch

from tasks.pruning import Saliency
from tasks.pruning.candidate import Candidate


class Magnitude(Saliency):
    """Magnitude, the absolute value of a weight (Han et al. 2015; Frankle & Carbin 2019)."""

    kind: Literal["magnitude"] = "magnitude"

    def score(self, network: Candidate) -> dict[str, torch.Tensor]:
        """|w| for every weight."""
        return {name: weight.abs() for name, weight in network.weights.items()}
