"""The thin residual networks that were designed for CIFAR-10."""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from tasks.data import Signature
from tasks.models import Architecture
from tasks.models.network import Network, require_size


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters: strided, padded with zero channels (option A)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.widen = width - channels
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W) to (N, width, H / stride, W / stride)."""
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.widen))
        return F.relu(inner + shortcut)


class _ResNetCifar(Architecture):
    """Three stages of `blocks` residual blocks at full, half and quarter resolution (He et al. 2016, section 4.2)."""

    blocks: ClassVar[int]
    width: int = Field(default=16, ge=1)
    """Channels of the first stage; the others have two and four times as many."""

    def build(self, data: Signature) -> nn.Module:
        """The network for these images, its convolutions drawn as in He et al. 2015.

        Raises:
            ValueError: the images are smaller than 4x4.
        """
        require_size(f"resnet-{6 * self.blocks + 2}", data, 4)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv=nn.Conv2d(data.channels, self.width, 3, padding=1, bias=False),
            norm=nn.BatchNorm2d(self.width),
            relu=nn.ReLU(),
        )
        channels = self.width
        for stage in range(3):
            width = self.width * 2**stage
            for block in range(self.blocks):
                stride = 2 if stage and not block else 1
                layers[f"stage{stage + 1}_block{block + 1}"] = _Block(channels, width, stride)
                channels = width
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["output"] = output = nn.Linear(channels, data.classes)
        body = nn.Sequential(layers)
        for layer in body.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        return Network(data, body, output)


class ResNet20(_ResNetCifar):
    """ResNet-20 for small images, 0.27 million weights (He et al. 2016, section 4.2)."""

    kind: Literal["resnet-20"] = "resnet-20"
    blocks: ClassVar[int] = 3


class ResNet32(_ResNetCifar):
    """ResNet-32 for small images, 0.46 million weights (He et al. 2016, section 4.2)."""

    kind: Literal["resnet-32"] = "resnet-32"
    blocks: ClassVar[int] = 5
