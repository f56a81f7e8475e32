"""A model as measurements see it: it counts its work, and its answer for an image does not depend on the company."""

from __future__ import annotations

import torch
from torch import nn

MULTIPLE = 8
"""Batches are filled up with copies to a multiple of so many images.

On a CPU, matrix products over one to three rows take other kernels, which add in another order than those for more
rows, and functions such as the exponential are rounded otherwise for the elements that are left over when a tensor does
not fill the vector registers. In full batches each row's logits and gradients were bitwise the same in all that were
tried.
"""


class Gauge(nn.Module):
    """Counts the images that go through a model.

    Args:
        model: in evaluation mode, images to logits.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen = 0
        self.train(model.training)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, K) of images (N, C, H, W), at least one."""
        self.seen += len(images)
        copies = images[:1].detach().expand(-len(images) % MULTIPLE, -1, -1, -1)
        logits: torch.Tensor = self.model(torch.cat([images, copies]) if len(copies) else images)
        return logits[: len(images)]

    def take(self) -> int:
        """The count since the last call."""
        seen, self.seen = self.seen, 0
        return seen
