"""The budget that is drawn where the model does worst."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from tasks.budgets import Budget
from tasks.moment import Moment


class Adaptive(Budget):
    """One of a few radii for each batch, drawn the more often the larger its loss (Kinfu & Vidal 2022, adaptive).

    A reconstruction from the abstract: the radius of each batch comes from a distribution that training changes; which
    one is chosen here. Of K levels, level k has the radius `epsilon * k / K` and the probability
    `p_k ~ exp(eta * loss_k)`, with `loss_k` the moving average of the cross-entropy on batches that were attacked with
    this radius. The very first loss stands for all levels until they have their own, so that none is preferred for
    having been drawn first.

    Large radii are among the levels from the first step on, so it does not help where these make training collapse, as
    `ramp` and `curriculum` do: a small MNIST network at epsilon 0.4 gave one class for all images in all of four runs.
    """

    kind: Literal["adaptive"] = "adaptive"
    levels: int = Field(default=4, ge=1)
    """Radii to draw from: equal parts of the largest, and it."""
    eta: float = Field(default=1.0, ge=0)
    """How much a nat of loss counts; 0 draws all levels equally often."""
    rate: float = Field(default=0.1, gt=0, le=1)
    """Weight of the newest loss in the moving average."""

    def memory(self, examples: int) -> nn.Module:
        """Buffers: `losses` (K,) float32, the averages; `level`, the index last drawn; `begun`, whether a loss came."""
        memory = nn.Module()
        memory.register_buffer("losses", torch.zeros(self.levels))
        memory.register_buffer("level", torch.zeros((), dtype=torch.int64))
        memory.register_buffer("begun", torch.zeros((), dtype=torch.bool))
        return memory

    def radii(self, epsilon: float, count: int, moment: Moment, memory: nn.Module) -> torch.Tensor:
        """The radius of the level that is drawn, for every image: (N,), so that nobody waits for the device."""
        losses, level = memory.get_buffer("losses"), memory.get_buffer("level")
        even = torch.rand(self.levels, generator=moment.generator, device=losses.device)
        # The largest of logarithmic weights plus Gumbel noise is a draw with these weights (Gumbel 1954).
        level.copy_((self.eta * losses - (-even.log()).log()).argmax())
        return (epsilon * ((level + 1) / self.levels)).expand(count)

    def learn(self, logits: torch.Tensor, labels: torch.Tensor, moment: Moment, memory: nn.Module) -> None:
        """Moves the average of the level that was drawn towards the mean cross-entropy of this batch."""
        losses, level, begun = (memory.get_buffer(name) for name in ("losses", "level", "begun"))
        loss = F.cross_entropy(logits.float(), labels)
        known = torch.where(begun, losses, loss)
        drawn = torch.arange(self.levels, device=losses.device) == level
        losses.copy_(torch.where(drawn, known.lerp(loss, self.rate), known))
        begun.fill_(True)
