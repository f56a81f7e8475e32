"""Sparsifiers: what becomes of a network's sparsity while it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from tasks.component import Component
from tasks.pruning.mask import Mask


@dataclass(frozen=True)
class Stage:
    """Where in its training a network stands, between two steps."""

    step: int
    """Steps taken, counted over the whole schedule."""
    steps: int
    """Length of the schedule."""
    per_epoch: int
    """Steps of an epoch."""
    mask: Mask | None
    """What the network is trained under; None if it is dense."""


@dataclass(frozen=True)
class Change:
    """What a sparsifier asks for between two steps."""

    mask: Mask | None = None
    """From now on this mask holds, nested in the one before."""
    stop: dict[str, object] | None = None
    """End the training, for this reason: what the metric `stopped` says beside `detected_at`, `why` among it."""


class Sparsifier(Component):
    """Prunes a network while it trains, or prepares it to be pruned."""

    prunes: ClassVar[bool] = False
    """Whether it changes the mask."""

    def check(self, model: nn.Module) -> None:
        """Finds without weights whether a dense network can become what it is to be.

        Args:
            model: also on `meta`.

        Raises:
            ValueError: it cannot.
        """

    def memory(self, model: nn.Module, mask: Mask | None) -> nn.Module:
        """What it remembers from step to step, as buffers; nothing unless it says otherwise.

        Args:
            model: as training begins, on its device.
            mask: what training begins under; None if the network is dense.

        Raises:
            ValueError: this network cannot become what it is to be.
        """
        return nn.Module()

    def penalty(self, model: nn.Module, memory: nn.Module) -> torch.Tensor | None:
        """Added to the loss of every step, a scalar with a graph."""
        return None

    def after_step(self, model: nn.Module, memory: nn.Module, stage: Stage) -> Change | None:
        """What is to change now; called after every step, with pruned weights at zero.

        Args:
            model: in training mode; left as it is.
            memory: changed in place.
            stage: of the training.
        """
        return None
