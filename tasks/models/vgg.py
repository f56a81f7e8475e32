"""VGG-16 with batch normalisation, with one linear layer behind its convolutions as is usual for small images."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import nn

from tasks.data import Signature
from tasks.models import Architecture
from tasks.models.network import Network, require_size

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions before each pooling: configuration D."""


class VGG16(Architecture):
    """VGG-16 with batch norm and a single linear layer (Simonyan & Zisserman 2015, configuration D)."""

    kind: Literal["vgg-16-bn"] = "vgg-16-bn"

    def build(self, data: Signature) -> nn.Module:
        """The network for these images.

        Raises:
            ValueError: the images are smaller than 32x32, which five poolings need.
        """
        require_size("vgg-16-bn", data, 32)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = data.channels
        for stage, (width, convs) in enumerate(STAGES, start=1):
            for conv in range(1, convs + 1):
                layers[f"conv{stage}_{conv}"] = kernel = nn.Conv2d(channels, width, 3, padding=1)
                nn.init.kaiming_normal_(kernel.weight, mode="fan_out", nonlinearity="relu")
                layers[f"norm{stage}_{conv}"] = nn.BatchNorm2d(width)
                layers[f"relu{stage}_{conv}"] = nn.ReLU()
                channels = width
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
        layers["average"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["output"] = output = nn.Linear(channels, data.classes)
        return Network(data, nn.Sequential(layers), output)
