"""MobileNetV2, with strides for small images."""

from __future__ import annotations

from typing import Literal

from torch import nn

from tasks.data import Signature
from tasks.models import Architecture
from tasks.models.network import Network, require_size


class MobileNetV2(Architecture):
    """MobileNetV2, inverted residuals with linear bottlenecks (Sandler et al. 2018, table 2)."""

    kind: Literal["mobilenet-v2"] = "mobilenet-v2"
    small_images: bool = True
    """No stride in the stem and in the second stage, so that 32x32 ends at 4x4 and not at 1x1."""

    def build(self, data: Signature) -> nn.Module:
        """The network for these images.

        Raises:
            ValueError: the images are smaller than the network's strides multiply to: 8, or 32 without `small_images`.
        """
        require_size("mobilenet-v2", data, 8 if self.small_images else 32)
        from torchvision.models import mobilenet_v2  # takes a second, which only those who build one need to spend

        stride = 1 if self.small_images else 2
        stages = [  # expansion, channels, blocks, stride
            [1, 16, 1, 1],
            [6, 24, 2, stride],
            [6, 32, 3, 2],
            [6, 64, 4, 2],
            [6, 96, 3, 1],
            [6, 160, 3, 2],
            [6, 320, 1, 1],
        ]
        body = mobilenet_v2(weights=None, num_classes=data.classes, inverted_residual_setting=stages)
        stem = nn.Conv2d(data.channels, 32, 3, stride, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out")
        body.features[0][0] = stem
        return Network(data, body, body.classifier[-1])
