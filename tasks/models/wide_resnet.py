"""Wide residual networks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import nn

from tasks.component import kind_of
from tasks.data import Signature
from tasks.models import Architecture
from tasks.models.network import Network, require_size


class _Block(nn.Module):
    """Norm, ReLU and 3x3 convolution, twice, with dropout between; a 1x1 convolution where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        changes = channels != width or stride != 1
        self.shortcut = nn.Conv2d(channels, width, 1, stride, bias=False) if changes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W) to (N, width, H / stride, W / stride)."""
        active = F.relu(self.norm1(x))
        inner: torch.Tensor = self.conv2(self.dropout(F.relu(self.norm2(self.conv1(active)))))
        return inner + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(Architecture):
    """Wide residual network with pre-activation, WRN-28-10 by default (Zagoruyko & Komodakis 2016)."""

    kind: Literal["wide-resnet"] = "wide-resnet"
    depth: int = Field(default=28, ge=10)
    """Convolutions and the output layer, 6n + 4."""
    widen_factor: int = Field(default=10, ge=1)
    """Channels of the three stages are 16, 32 and 64 times this."""
    dropout: float = Field(default=0, ge=0, lt=1)
    """Share of activations dropped between the two convolutions of a block."""

    @field_validator("depth")
    @classmethod
    def _in_whole_blocks(cls, depth: int) -> int:
        if depth % 6 != 4:
            raise ValueError(f"depth is 6n + 4 (10, 16, 22, 28, 34, 40, ...), not {depth}")
        return depth

    def build(self, data: Signature) -> nn.Module:
        """The network for these images, its convolutions drawn as in He et al. 2015.

        Raises:
            ValueError: the images are smaller than 4x4.
        """
        blocks = (self.depth - 4) // 6
        return wide_residual(kind_of(type(self)), data, [blocks] * 3, [self.widen_factor] * 3, self.dropout)


def wide_residual(
    kind: str, data: Signature, depths: Sequence[int], widths: Sequence[int], dropout: float
) -> nn.Module:
    """A wide residual network, its convolutions drawn as in He et al. 2015.

    Args:
        kind: what its architecture is called.
        data: the images.
        depths: blocks of each stage.
        widths: widen factor of each stage, whose channels are 16, 32, 64, ... times this.
        dropout: share of activations dropped between the two convolutions of a block.

    Raises:
        ValueError: the images are smaller than 4x4.
    """
    require_size(kind, data, 4)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=nn.Conv2d(data.channels, 16, 3, padding=1, bias=False))
    channels = 16
    for stage, (depth, factor) in enumerate(zip(depths, widths, strict=True)):
        width = 16 * 2**stage * factor
        for block in range(depth):
            stride = 2 if stage and not block else 1
            layers[f"stage{stage + 1}_block{block + 1}"] = _Block(channels, width, stride, dropout)
            channels = width
    layers["norm"] = nn.BatchNorm2d(channels)
    layers["relu"] = nn.ReLU()
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["output"] = output = nn.Linear(channels, data.classes)
    body = nn.Sequential(layers)
    for layer in body.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return Network(data, body, output)
