"""Any architecture, its layers narrower: what is left of a network when whole channels have been pruned."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from tasks.data import Signature
from tasks.models import Architecture
from tasks.models.channels import Channels, channel_groups, with_channels
from tasks.models.network import Network


class Compacted(Architecture):
    """Another architecture with fewer channels in some layers, as structured pruning leaves it (Li et al. 2017).

    Its tensors keep their names. Initial weights are those of the base, cut off: their scale is that of the wider
    layers.
    """

    kind: Literal["compacted"] = "compacted"
    base: Architecture
    """The network with all its channels."""
    widths: dict[str, Annotated[int, Field(ge=1)]] = Field(min_length=1)
    """Channels left, by the kernel that makes them; all of those that are not named."""

    def build(self, data: Signature) -> nn.Module:
        """The smaller network for these images.

        Raises:
            ValueError: the images do not fit the base, or it cannot shrink as `widths` says.
        """
        network = self.base.build(data)
        assert isinstance(network, Network)
        groups = {group.kernel: group for group in shrinkable(network, data)}
        for kernel, width in self.widths.items():
            if kernel not in groups:
                raise ValueError(f"widths: '{kernel}' makes no channels that can go; allowed: {', '.join(groups)}")
            if width > groups[kernel].size:
                raise ValueError(f"widths: {width} channels of '{kernel}', which makes {groups[kernel].size}")
        first = torch.arange(max(self.widths.values()), device="cpu")
        narrow_(network, [(groups[kernel], first[:width]) for kernel, width in self.widths.items()])
        return network


def shrinkable(network: Network, data: Signature) -> tuple[Channels, ...]:
    """The groups of channels that can be removed one by one; residual streams are none.

    Args:
        network: on any device, also on `meta`.
        data: shape of its images.

    Raises:
        ValueError: there are none, or the channels cannot be followed.
    """
    groups = tuple(group for group in channel_groups(network, data) if group.size > 1 and not group.stream)
    if not groups:
        raise ValueError(f"{type(network.body).__name__} has no channels that could be removed from between two layers")
    return groups


def narrow_(network: Network, choices: Iterable[tuple[Channels, torch.Tensor]]) -> None:
    """Leaves a network only these channels (k,) int64 of these groups, in place: smaller tensors, smaller layers."""
    before = network.state_dict()
    after = with_channels(before, choices)
    for name, tensor in after.items():
        if tensor.shape == before[name].shape:
            continue
        path, _, own = name.rpartition(".")
        layer = network.get_submodule(path)
        setattr(layer, own, nn.Parameter(tensor) if isinstance(getattr(layer, own), nn.Parameter) else tensor)
        if own == "weight":
            _resize(layer, tensor.shape)


def _resize(layer: nn.Module, shape: torch.Size) -> None:
    """Tells a layer the shape of its new weight."""
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = shape
    elif isinstance(layer, nn.Conv2d):
        if layer.groups > 1:  # depthwise: channels of other grouped convolutions do not go
            layer.groups = shape[0]
        layer.out_channels, layer.in_channels = shape[0], shape[1] * layer.groups
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        layer.num_features = shape[0]
