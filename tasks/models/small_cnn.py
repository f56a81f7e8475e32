"""The small convolutional network that MNIST's robustness is often studied on."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import nn

from tasks.data import Signature
from tasks.models import Architecture
from tasks.models.linear import Linear
from tasks.models.network import Network, require_size


class SmallCNN(Architecture):
    """Two 4x4 convolutions of stride 2 with 16 and 32 channels, then 100-classes (Wong & Kolter 2018, appendix B)."""

    kind: Literal["small-cnn"] = "small-cnn"

    def build(self, data: Signature) -> nn.Module:
        """The network for these images.

        Raises:
            ValueError: the images are smaller than 4x4.
        """
        require_size("small-cnn", data, 4)
        output = Linear(100, data.classes)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(data.channels, 16, 4, stride=2, padding=1),
            conv1_relu=nn.ReLU(),
            conv2=nn.Conv2d(16, 32, 4, stride=2, padding=1),
            conv2_relu=nn.ReLU(),
            flatten=nn.Flatten(),
            hidden=Linear(32 * (data.height // 4) * (data.width // 4), 100),
            hidden_relu=nn.ReLU(),
            output=output,
        )
        return Network(data, nn.Sequential(layers), output)
