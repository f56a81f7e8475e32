"""Normalisation as the first layer, so that attacks and users see images in [0, 1]."""

from __future__ import annotations

import torch
from torch import nn

from tasks.data import Signature


class Normalise(nn.Module):
    """Subtracts the mean of each channel and divides by its standard deviation.

    Both are buffers: a weights file carries the statistics that its network was trained with.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, data: Signature) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(data.mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(data.std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W) in [0, 1] to inputs of the same shape with mean 0 and deviation 1 over the data."""
        return (images - self.mean) / self.std
