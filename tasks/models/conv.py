"""Conv-2, Conv-4 and Conv-6: the scaled-down VGGs of the lottery-ticket paper."""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar, Literal

from torch import nn

from tasks.data import Signature
from tasks.models import Architecture
from tasks.models.linear import Linear
from tasks.models.network import Network, require_size


class _Conv(Architecture):
    """Blocks of two 3x3 convolutions and a pooling, then 256-256-classes (Frankle & Carbin 2019, Fig. 2)."""

    blocks: ClassVar[int]

    def build(self, data: Signature) -> nn.Module:
        """The network for these images.

        Raises:
            ValueError: the images are smaller than the poolings need.
        """
        shrink = 2**self.blocks
        require_size(f"conv-{2 * self.blocks}", data, shrink)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = data.channels
        for block in range(self.blocks):
            for conv in (2 * block + 1, 2 * block + 2):
                layers[f"conv{conv}"] = nn.Conv2d(channels, 64 * 2**block, 3, padding=1)
                layers[f"conv{conv}_relu"] = nn.ReLU()
                channels = 64 * 2**block
            layers[f"pool{block + 1}"] = nn.MaxPool2d(2)
        layers["flatten"] = nn.Flatten()
        layers["hidden1"] = Linear(channels * (data.height // shrink) * (data.width // shrink), 256)
        layers["hidden1_relu"] = nn.ReLU()
        layers["hidden2"] = Linear(256, 256)
        layers["hidden2_relu"] = nn.ReLU()
        layers["output"] = output = Linear(256, data.classes)
        return Network(data, nn.Sequential(layers), output)


class Conv2(_Conv):
    """Conv-2, two convolutions of 64 channels and three linear layers (Frankle & Carbin 2019)."""

    kind: Literal["conv-2"] = "conv-2"
    blocks: ClassVar[int] = 1


class Conv4(_Conv):
    """Conv-4, four convolutions of 64 and 128 channels and three linear layers (Frankle & Carbin 2019)."""

    kind: Literal["conv-4"] = "conv-4"
    blocks: ClassVar[int] = 2


class Conv6(_Conv):
    """Conv-6, six convolutions of 64, 128 and 256 channels and three linear layers (Frankle & Carbin 2019)."""

    kind: Literal["conv-6"] = "conv-6"
    blocks: ClassVar[int] = 3
