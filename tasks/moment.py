"""Where in its training a batch stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass(frozen=True)
class Moment:
    """All that an objective may draw from, know and remember at one step of training."""

    generator: torch.Generator
    """The only source of randomness, seeded for this step; on the device of the images."""
    step: int = 0
    """Steps taken before this one, counted over the whole schedule."""
    steps: int = 1
    """Length of the schedule."""
    rows: torch.Tensor | None = None
    """(N,) int64, places of the examples in the training split; absent outside a training."""
    memory: nn.Module = field(default_factory=nn.Module)
    """What `Objective.memory` made, as the steps before have left it; its buffers are changed in place."""
    kept: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """The mask, bool tensors by parameter name on the device of the weights; empty if the network is dense."""
    teacher: nn.Module | None = None
    """A trained network in evaluation mode, its weights without gradients; for an objective that is `taught`."""
    summed: Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]] = lambda tensors: tensors
    """Sums over the processes that train together, each of which sees its part of the batch; of one, what is given."""

    @property
    def progress(self) -> float:
        """The share of the training that is done, in [0, 1)."""
        return self.step / self.steps
