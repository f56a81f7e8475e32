"""Pruning: which weights of a network to keep."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tasks.component import Component
from tasks.pruning.mask import Mask


class Saliency(Component):
    """How much each weight matters."""

    def score(
        self, weights: Mapping[str, torch.Tensor], mask: Mask, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """A score for every weight under the mask, in the weights' shapes: the lowest are pruned first.

        Args:
            weights: the prunable kernels by name.
            mask: what is still kept; scores of pruned positions are ignored.
            generator: the only source of randomness, on the CPU.
        """
        raise NotImplementedError
