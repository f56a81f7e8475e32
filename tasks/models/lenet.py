"""LeNet-300-100: the fully connected network of most small pruning experiments."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import nn

from tasks.data import Signature
from tasks.models import Architecture
from tasks.models.linear import Linear
from tasks.models.network import Network


class LeNet300100(Architecture):
    """LeNet-300-100, two hidden layers on the pixels (LeCun et al. 1998); takes images of any shape."""

    kind: Literal["lenet-300-100"] = "lenet-300-100"

    def build(self, data: Signature) -> nn.Module:
        """The network for these images."""
        output = Linear(100, data.classes)
        body = OrderedDict(
            flatten=nn.Flatten(),
            hidden1=Linear(data.channels * data.height * data.width, 300),
            relu1=nn.ReLU(),
            hidden2=Linear(300, 100),
            relu2=nn.ReLU(),
            output=output,
        )
        return Network(data, nn.Sequential(body), output)
