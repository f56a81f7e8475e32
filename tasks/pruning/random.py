"""Random scores: the control that every saliency has to beat."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from tasks.pruning import Saliency
from tasks.pruning.candidate import Candidate


class Random(Saliency):
    """Random scores, uniform and independent of the weights (baseline of Gale et al. 2019)."""

    kind: Literal["random"] = "random"
    draws: ClassVar = True

    def score(self, network: Candidate) -> dict[str, torch.Tensor]:
        """Uniform scores in [0, 1), drawn kernel by kernel in the mask's order."""
        # Double, because 24 random bits repeat within a large network and ties would favour its first kernels.
        return {
            name: torch.rand(network.weights[name].shape, dtype=torch.float64, generator=network.generator)
            for name in network.mask
        }
