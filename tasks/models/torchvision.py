"""The classifiers of `torchvision.models`, for checkpoints that were trained elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from tasks.data import Signature
from tasks.models import Architecture
from tasks.models.network import Network

AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Where GoogLeNet and Inception v3 keep the heads that only their own training needs."""

Deviation = Annotated[float, Field(gt=0)]


class Torchvision(Architecture):
    """A classifier of `torchvision.models` by its name there (pytorch.org/vision/stable/models.html).

    Its layers keep torchvision's names, below `body.`; auxiliary heads are left out. Grey images are given to all three
    input channels. Vision transformers and MaxViT are built for the size of the images; whatever else does not take
    images of this size is refused.
    """

    kind: Literal["torchvision"] = "torchvision"

    name: str
    """As `torchvision.models.list_models` has it: `resnet50`, `vit_b_16`, ..."""
    mean: tuple[float, ...] | None = None
    """Per channel, of images in [0, 1]: what is subtracted first; the mean of the data unless given."""
    std: tuple[Deviation, ...] | None = None
    """Per channel: what is divided by then; the standard deviation of the data unless given."""

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        from torchvision import models  # takes a second, which only those who build one need to spend

        known = models.list_models(module=models)
        if name not in known:
            close = get_close_matches(name, known, n=3)
            raise ValueError(f"torchvision has no classifier of this name; it has {', '.join(close or known)}")
        return name

    @model_validator(mode="after")
    def _normalises_whole(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither")
        return self

    def build(self, data: Signature) -> nn.Module:
        """The network for these images.

        Raises:
            ValueError: it does not take images of this shape, or mean and std do not fit their channels.
        """
        from torchvision.models import get_model

        device, statistics = torch.get_default_device(), self._normalised(data)
        try:
            with torch.device("cpu" if self.name.startswith("regnet") else device):  # its widths are found with tensors
                body = get_model(self.name, weights=None, num_classes=data.classes, **self._shaped_by(data)).to(device)
            layers = [layer for layer in body.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
            network = Network(statistics, body, layers[-1])
            _try_out(network, data)
        except (AssertionError, RuntimeError, ValueError) as error:
            shape = f"{data.channels}x{data.height}x{data.width}"
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"torchvision's {self.name} does not take images of {shape}: {reason}") from None
        return network

    def _shaped_by(self, data: Signature) -> Mapping[str, Any]:
        """Arguments without which the network would be another, or for other images."""
        if self.name.startswith("vit_"):
            return {"image_size": data.height}
        if self.name.startswith("maxvit"):
            return {"input_size": (data.height, data.width)}
        if self.name in ("googlenet", "inception_v3"):
            return {"aux_logits": False, "init_weights": True}
        return {}

    def _normalised(self, data: Signature) -> Signature:
        """The data as the first layer sees them; three statistics for one grey channel make it three."""
        if self.mean is None or self.std is None:
            mean, std = data.mean, data.std
        else:
            mean, std = self.mean, self.std
        if not len(mean) == len(std) or len(mean) not in ({1, 3} if data.channels == 1 else {data.channels}):
            raise ValueError(
                f"mean and std have {len(mean)} and {len(std)} values, the images {data.channels} channels"
            )
        if len(mean) == 1:
            mean, std = mean * 3, std * 3
        return replace(data, mean=mean, std=std)


def _try_out(network: Network, data: Signature) -> None:
    """Sends shapes without numbers through the network: nothing is computed, and what does not fit raises."""
    tensors = itertools.chain(network.named_parameters(), network.named_buffers())
    state = {name: tensor.to("meta") for name, tensor in tensors}
    image = torch.empty(1, data.channels, data.height, data.width, device="meta")
    training = network.training
    with torch.no_grad():
        torch.func.functional_call(network.eval(), state, (image,))
    network.train(training)
