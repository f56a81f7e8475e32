"""Optimizers: how weights follow their gradients."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn, optim

from tasks.component import Component


class Optimizer(Component):
    """An update rule; its learning rate is the peak that the schedule scales."""

    learning_rate: float

    def build(self, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
        """The PyTorch optimizer over these parameters."""
        raise NotImplementedError
