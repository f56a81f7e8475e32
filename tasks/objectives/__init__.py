"""Objectives: what training minimises."""

from __future__ import annotations

import torch
from torch import nn

from tasks.component import Component


class Objective(Component):
    """A loss over a batch."""

    def passes(self) -> int:
        """Forward-and-backward passes per example, those of the inner attack included: the cost in sample-steps."""
        return 1

    def loss(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """The mean loss, a scalar with a graph.

        Args:
            model: in training mode; an objective that attacks it in evaluation mode restores the mode.
            images: (N, C, H, W) in [0, 1].
            labels: (N,) int64.
            generator: the only source of randomness, on the device of the images.
        """
        raise NotImplementedError
