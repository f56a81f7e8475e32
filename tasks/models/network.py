"""What every architecture builds: normalisation, then a body, with its output layer declared."""

from __future__ import annotations

import torch
from torch import nn

from tasks.data import Signature
from tasks.models.normalise import Normalise


class Network(nn.Module):
    """Images (N, C, H, W) in [0, 1] to logits (N, classes).

    Args:
        data: shape and statistics of the images.
        body: normalised images to logits.
        output: the layer of `body` whose outputs are the logits; pruning may treat it apart.
    """

    output_layer: str
    """The name of the output layer's kernel among the parameters."""

    def __init__(self, data: Signature, body: nn.Module, output: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.normalise = Normalise(data)
        self.body = body
        self.output_layer = next(f"{name}.weight" for name, layer in self.named_modules() if layer is output)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes)."""
        logits: torch.Tensor = self.body(self.normalise(images))
        return logits


def require_size(kind: str, data: Signature, smallest: int) -> None:
    """Checks that the images survive the network's downsampling.

    Raises:
        ValueError: an image has fewer than `smallest` rows or columns.
    """
    if min(data.height, data.width) < smallest:
        shape = f"{data.channels}x{data.height}x{data.width}"
        raise ValueError(f"{kind} needs images of at least {smallest}x{smallest} pixels, these are {shape}")
