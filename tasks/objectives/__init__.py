"""Objectives: what training minimises."""

from __future__ import annotations

from typing import Self

import torch
from torch import nn

from tasks.attacks.ball import Norm
from tasks.component import Component, kind_of
from tasks.data import Signature
from tasks.moment import Moment


class Objective(Component):
    """A loss over a batch."""

    @property
    def replays(self) -> int:
        """How many steps in a row see the same batch."""
        return 1

    @property
    def threat(self) -> tuple[Norm, float] | None:
        """Norm and largest radius of the attack that is trained against; None without one."""
        return None

    @property
    def second_order(self) -> bool:
        """Whether the gradient of its loss goes through other gradients, which a compiled network cannot give."""
        return False

    @property
    def moves_weights(self) -> bool:
        """Whether it takes the loss at other weights than the network's."""
        return False

    @property
    def taught(self) -> bool:
        """Whether it learns from another network, `Moment.teacher`."""
        return False

    @property
    def grows(self) -> bool:
        """Whether the radius of its attack begins small in every training."""
        return False

    def against(self, epsilon: float) -> Self:
        """The same objective with another largest radius of its attack.

        Raises:
            ValueError: it has no attack, or there is no such radius.
        """
        raise ValueError(f"objective `{kind_of(type(self))}` has no epsilon: it trains against no attack")

    def passes(self) -> int:
        """Forward-and-backward passes per example, those of the inner attack included: the cost in sample-steps."""
        return 1

    def memory(self, data: Signature, examples: int, batch: int) -> nn.Module:
        """What it remembers from step to step, as buffers; nothing unless it says otherwise.

        Args:
            data: the images.
            examples: in the training split.
            batch: most examples of a step.
        """
        return nn.Module()

    def loss(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, moment: Moment) -> torch.Tensor:
        """The mean loss, a scalar with a graph.

        Args:
            model: in training mode; an objective that attacks it in evaluation mode restores the mode.
            images: (N, C, H, W) in [0, 1].
            labels: (N,) int64.
            moment: of this step.
        """
        raise NotImplementedError
