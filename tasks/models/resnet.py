"""The residual networks that were designed for ImageNet, with a stem for small images."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from tasks.data import Signature
from tasks.models import Architecture
from tasks.models.network import Network, require_size


class _ResNet(Architecture):
    """Torchvision's residual network without its pretrained weights (He et al. 2016, table 1)."""

    layers: ClassVar[int]
    small_images: bool = True
    """A 3x3 stem without stride or pooling, as is usual for images of 32x32; else the 7x7 stem of ImageNet."""

    def build(self, data: Signature) -> nn.Module:
        """The network for these images.

        Raises:
            ValueError: the images are smaller than the network's strides multiply to: 8, or 32 with the 7x7 stem.
        """
        require_size(f"resnet-{self.layers}", data, 8 if self.small_images else 32)
        from torchvision.models import get_model  # takes a second, which only those who build one need to spend

        body = get_model(f"resnet{self.layers}", weights=None, num_classes=data.classes)
        if self.small_images:
            body.conv1 = nn.Conv2d(data.channels, 64, 3, padding=1, bias=False)
            body.maxpool = nn.Identity()
        else:
            body.conv1 = nn.Conv2d(data.channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
        return Network(data, body, body.fc)


class ResNet18(_ResNet):
    """ResNet-18, basic blocks, 11 million weights (He et al. 2016, table 1)."""

    kind: Literal["resnet-18"] = "resnet-18"
    layers: ClassVar[int] = 18


class ResNet34(_ResNet):
    """ResNet-34, basic blocks, 21 million weights (He et al. 2016, table 1)."""

    kind: Literal["resnet-34"] = "resnet-34"
    layers: ClassVar[int] = 34


class ResNet50(_ResNet):
    """ResNet-50, bottleneck blocks, 24 million weights (He et al. 2016, table 1)."""

    kind: Literal["resnet-50"] = "resnet-50"
    layers: ClassVar[int] = 50
