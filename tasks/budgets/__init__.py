"""Budgets: how much of its radius the attack of a training spends, when and on which images."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from tasks.component import Component
from tasks.moment import Moment


class Budget(Component):
    """The radius of every attack in a training, out of a largest one."""

    grows: ClassVar[bool] = False
    """Whether every training begins at small radii."""

    def memory(self, examples: int) -> nn.Module:
        """What it remembers from step to step, as buffers; nothing unless it says otherwise.

        Args:
            examples: in the training split.
        """
        return nn.Module()

    def radii(self, epsilon: float, count: int, moment: Moment, memory: nn.Module) -> float | torch.Tensor:
        """The radius for all images of a batch, or (N,) float32 those of each; from 0 to `epsilon`.

        Args:
            epsilon: the largest radius.
            count: N, images of the batch.
            moment: of this step.
            memory: its own part of the objective's.
        """
        raise NotImplementedError

    def learn(self, logits: torch.Tensor, labels: torch.Tensor, moment: Moment, memory: nn.Module) -> None:
        """Takes down in `memory` what came of the radii that were given out; called once after each `radii`.

        Args:
            logits: (N, K) of the perturbed images, detached, before the step.
            labels: (N,) int64.
            moment: of this step.
            memory: its own part of the objective's.
        """
