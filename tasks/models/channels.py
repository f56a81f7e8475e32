"""Which tensors of a network the channels of a layer run through: what can be permuted, or removed, together."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from tasks.data import Signature
from tasks.models.network import Network
from tasks.models.normalise import Normalise
from tasks.models.quantised import Rounding

_EACH_BY_ITSELF = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Softplus),
    *(nn.Identity, nn.Dropout, nn.Dropout2d, Normalise, Rounding),
)
"""Modules that compute each channel from that channel alone, and all in the same way."""
_EACH_BY_ITSELF_CALLED = {
    *("relu", "relu_", "relu6", "leaky_relu", "elu", "gelu", "silu", "hardswish", "sigmoid", "tanh", "softplus"),
    *("dropout", "dropout2d", "max_pool2d", "boolean_dispatch", "avg_pool2d", "adaptive_avg_pool2d", "contiguous"),
}
"""The same as functions or methods, by name."""
_COMBINING = {"add", "iadd", "add_", "mul", "imul", "sub"}
"""Functions of two tensors, entry by entry."""
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Use:
    """One axis of one tensor that channels index."""

    tensor: str
    """A parameter or buffer by its name in the state dict."""
    axis: int
    """0 where the channels are made, and of biases and norms; 1 where a kernel takes them in."""
    span: int = 1
    """Consecutive positions that belong to one channel: height times width behind a flattening, else 1."""
    first: int = 0
    """Where on the axis the first channel begins: above 0 if the axis carries other channels before these."""

    def positions(self, channels: torch.Tensor) -> torch.Tensor:
        """The positions (k * span,) int64 on the axis of these channels (k,) int64, in their order; on the CPU."""
        return (self.first + channels.unsqueeze(1) * self.span + torch.arange(self.span, device="cpu")).flatten()

    def of_each(self, tensor: torch.Tensor, size: int) -> torch.Tensor:
        """(size, n), the entries of the tensor that belong to each of `size` channels."""
        own = tensor.narrow(self.axis, self.first, size * self.span)
        return own.movedim(self.axis, 0).reshape(size, -1)


@dataclass(frozen=True)
class Channels:
    """Channels that are interchangeable: any permutation of them, in all uses alike, leaves the network's function."""

    size: int
    """How many there are."""
    uses: tuple[Use, ...]
    """Every axis of a parameter or buffer that they index, in the order of their first use."""
    stream: bool
    """Whether several layers add to them (a residual stream), or a norm takes its statistics over all of them: such
    channels can be permuted, but pruning does not remove them."""

    @property
    def kernel(self) -> str:
        """The first kernel that makes them: what the group goes by."""
        return self.uses[0].tensor


def channel_groups(network: Network, data: Signature) -> tuple[Channels, ...]:
    """The groups of channels of a network, in the order in which it makes them.

    Followed are linear layers, convolutions (plain and depthwise), batch and layer norms, pooling, pointwise functions,
    flattening, sums, products, concatenations, and shortcuts padded with zero channels (He et al. 2016, option A): the
    padded channels of a wider stage are a group of their own, beside those that come from the narrower one. Channels of
    the images, logits, and what goes in and out of other grouped convolutions are in no group. Of normalisations over
    groups, attention and whatever moves channels to another axis nothing is known.

    Args:
        network: on any device, also on `meta`; it is left as it is.
        data: shape of its images.

    Raises:
        ValueError: it does something that cannot be followed; names the first of it.
    """
    what = f"the channels of {type(network.body).__name__} cannot be followed"
    try:
        graph = _Tracer().trace(network)
    except Exception as problem:  # code that needs values raises nearly anything when it is traced
        why = str(problem).strip().partition("\n")[0].partition(". ")[0]
        raise ValueError(f"{what}: its code cannot be traced ({why})") from None
    followed = _Followed(fx.GraphModule(copy.deepcopy(network).to("meta").eval(), graph))
    try:
        followed.run(torch.empty(1, data.channels, data.height, data.width, device="meta"))
        return followed.groups()
    except _UnknownError as problem:
        raise ValueError(f"{what}: {problem}") from None


def with_channels(
    tensors: Mapping[str, torch.Tensor], choices: Iterable[tuple[Channels, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """The tensors with other channels: those that are chosen, in the order in which they are.

    A permutation of all of them reorders the network without changing its function; fewer make it smaller.

    Args:
        tensors: by name in the state dict: weights, buffers, or the mask; those that are not there are passed over.
        choices: groups, each once, and the channels to take of each, (k,) int64 on the CPU.
    """
    places: dict[tuple[str, int], list[tuple[Use, int, torch.Tensor]]] = {}
    for group, channels in choices:
        for use in group.uses:
            if use.tensor in tensors:
                places.setdefault((use.tensor, use.axis), []).append((use, group.size, channels))
    changed = dict(tensors)
    for (name, axis), uses in places.items():
        index = torch.arange(changed[name].shape[axis], device="cpu")  # also where networks are built on `meta`
        stays = torch.ones_like(index, dtype=torch.bool)
        for use, size, channels in uses:
            taken = use.positions(channels)
            index[use.first : use.first + len(taken)] = taken
            stays[use.first + len(taken) : use.first + size * use.span] = False
        changed[name] = changed[name].index_select(axis, index[stays].to(changed[name].device))
    return changed


class _UnknownError(Exception):
    """Something that cannot be followed."""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Linear | Normalise | Rounding) or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class _Features:
    """A tensor of the network's features: its shape, and whose channels are on its second axis."""

    tensor: torch.Tensor
    channels: tuple[int, ...]
    """Their numbers, each for `span` positions on axis 1."""
    span: int = 1


class _Followed:
    """A walk through the network's graph that gives every channel a number, and joins those that have to go together.

    Args:
        module: the network on `meta`, in evaluation mode.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.joined: list[int] = []
        """By channel: itself, or one that it goes together with."""
        self.fixed: set[int] = set()
        self.summed: set[int] = set()
        self.uses: dict[tuple[str, int], tuple[int, tuple[int, ...]]] = {}
        """By tensor and axis: the span, and the channels along it."""

    def run(self, images: torch.Tensor) -> None:
        """Walks through the network with images (1, C, H, W)."""
        values: dict[fx.Node, Any] = {}
        for node in self.module.graph.nodes:
            arguments = fx.node.map_arg(node.args, values.__getitem__)
            named = fx.node.map_arg(node.kwargs, values.__getitem__)
            if node.op == "placeholder":
                values[node] = _Features(images, self._new(images.shape[1]))
                self.fixed.update(values[node].channels)
            elif node.op == "output":
                self.fixed.update(arguments[0].channels)
            elif node.op == "get_attr":
                raise _UnknownError(f"'{node.target}' is used outside of a layer")
            elif node.op == "call_module":
                values[node] = self._layer(node.target, self.module.get_submodule(node.target), arguments[0])
            else:
                values[node] = self._function(node, arguments, named)

    def groups(self) -> tuple[Channels, ...]:
        """What has been found."""
        fixed, summed = ({self._root(each) for each in some} for some in (self.fixed, self.summed))
        used: dict[int, list[tuple[tuple[str, int], int]]] = {}
        for place, (_, channels) in self.uses.items():
            for position, channel in enumerate(channels):
                used.setdefault(self._root(channel), []).append((place, position))
        alike: dict[tuple[tuple[tuple[str, int], ...], bool], list[list[int]]] = {}
        for root, found in used.items():
            if root not in fixed:
                kind = (tuple(place for place, _ in found), root in summed)
                alike.setdefault(kind, []).append([position for _, position in found])
        groups = []
        for (places, stream), members in alike.items():
            firsts = members[0]
            for each, positions in enumerate(members):
                if positions != [first + each for first in firsts]:
                    raise _UnknownError(f"other layers use those of '{places[0][0]}' in another order")
            uses = (
                Use(tensor, axis, self.uses[tensor, axis][0], first * self.uses[tensor, axis][0])
                for (tensor, axis), first in zip(places, firsts, strict=True)
            )
            groups.append(Channels(len(members), tuple(uses), stream))
        return tuple(groups)

    def _new(self, count: int) -> tuple[int, ...]:
        channels = tuple(range(len(self.joined), len(self.joined) + count))
        self.joined.extend(channels)
        return channels

    def _root(self, channel: int) -> int:
        while self.joined[channel] != channel:
            self.joined[channel] = channel = self.joined[self.joined[channel]]
        return channel

    def _join(self, channels: Sequence[int], others: Sequence[int]) -> None:
        for channel, other in zip(channels, others, strict=True):
            first, second = sorted((self._root(channel), self._root(other)))
            self.joined[second] = first

    def _use(self, tensor: str, axis: int, channels: tuple[int, ...], span: int = 1) -> None:
        known = self.uses.setdefault((tensor, axis), (span, channels))
        if known[0] != span or len(known[1]) != len(channels):
            raise _UnknownError(f"'{tensor}' is applied twice, to features of different shapes")
        self._join(known[1], channels)

    def _layer(self, name: str, layer: nn.Module, given: _Features) -> _Features:
        output = layer(given.tensor)
        if isinstance(layer, nn.Linear) and given.tensor.dim() == 2:
            self._use(f"{name}.weight", 1, given.channels, given.span)
            return _Features(output, self._made(name, layer, layer.out_features))
        if isinstance(layer, nn.Conv2d):
            return _Features(output, self._convolved(name, layer, given))
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            self._indexed(name, layer, _BATCH_NORM, given)
            return _Features(output, given.channels, given.span)
        if isinstance(layer, nn.LayerNorm) and given.tensor.dim() == 2:
            self._indexed(name, layer, ("weight", "bias"), given)
            self.summed.update(given.channels)
            return _Features(output, given.channels, given.span)
        if isinstance(layer, nn.Flatten) and layer.start_dim == 1 and layer.end_dim == -1:
            return _flattened(given, output)
        if isinstance(layer, _EACH_BY_ITSELF):
            return _Features(output, given.channels, given.span)
        raise _UnknownError(f"'{name}' is a {type(layer).__name__} on features of shape {tuple(given.tensor.shape)}")

    def _convolved(self, name: str, layer: nn.Conv2d, given: _Features) -> tuple[int, ...]:
        if layer.groups == layer.in_channels == layer.out_channels > 1:
            self._indexed(name, layer, ("weight", "bias"), given)
            return given.channels
        if layer.groups > 1:
            self.fixed.update(given.channels)
            made = self._made(name, layer, layer.out_channels)
            self.fixed.update(made)
            return made
        self._use(f"{name}.weight", 1, given.channels)
        return self._made(name, layer, layer.out_channels)

    def _made(self, name: str, layer: nn.Linear | nn.Conv2d, count: int) -> tuple[int, ...]:
        known = self.uses.get((f"{name}.weight", 0))
        made = self._new(count) if known is None else known[1]
        self._indexed(name, layer, ("weight", "bias"), _Features(layer.weight, made))
        return made

    def _indexed(self, name: str, layer: nn.Module, tensors: Iterable[str], features: _Features) -> None:
        for each in tensors:
            if getattr(layer, each) is not None:
                self._use(f"{name}.{each}", 0, features.channels, features.span)

    def _function(self, node: fx.Node, arguments: tuple[Any, ...], named: dict[str, Any]) -> _Features:
        called = str(node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target))
        tensors, named_tensors = _tensors(arguments), _tensors(named)
        function: Callable[..., Any] = getattr(tensors[0], node.target) if isinstance(node.target, str) else node.target
        output = function(*(tensors[1:] if isinstance(node.target, str) else tensors), **named_tensors)
        given = arguments[0]
        if called == "cat" and named.get("dim", arguments[1] if len(arguments) > 1 else 0) == 1:
            parts: Sequence[_Features] = given
            if len({part.span for part in parts}) == 1:
                return _Features(output, tuple(each for part in parts for each in part.channels), parts[0].span)
        elif called in _COMBINING:
            return self._combined(arguments, output)
        elif called in _EACH_BY_ITSELF_CALLED:
            return _Features(output, given.channels, given.span)
        elif called == "flatten" and _argument(arguments, named, 1, "start_dim", 0) == 1:
            return _flattened(given, output)
        elif called == "mean" and _is_spatial(_argument(arguments, named, 1, "dim", None), given):
            return _Features(output, given.channels, given.span)
        elif called == "pad" and _argument(arguments, named, 2, "mode", "constant") == "constant":
            return self._padded(given, arguments[1], output)
        elif node.target is operator.getitem and isinstance(arguments[1], tuple):
            return _sliced(given, arguments[1], output)
        raise _UnknownError(f"{called} at '{node.name}'")

    def _combined(self, arguments: tuple[Any, ...], output: torch.Tensor) -> _Features:
        features = [each for each in arguments if isinstance(each, _Features)]
        first = features[0]
        for other in features[1:]:
            if (other.span, len(other.channels)) != (first.span, len(first.channels)):
                raise _UnknownError(f"features of shapes {tuple(first.tensor.shape)} and {tuple(other.tensor.shape)}")
            self._join(first.channels, other.channels)
            self.summed.update(first.channels)
        return _Features(output, first.channels, first.span)

    def _padded(self, given: _Features, amounts: Sequence[int], output: torch.Tensor) -> _Features:
        """Channels of zeros before and after the others; they index no tensor until others are added to them."""
        behind = 2 * (given.tensor.dim() - 2)
        before, after = (*amounts[behind : behind + 2], 0, 0)[:2]
        if given.span != 1 or before < 0 or after < 0 or len(amounts) > behind + 2:
            raise _UnknownError(f"padding by {tuple(amounts)}")
        return _Features(output, (*self._new(before), *given.channels, *self._new(after)))


def _tensors(given: Any) -> Any:
    """The same arguments, with tensors for features."""
    if isinstance(given, _Features):
        return given.tensor
    if isinstance(given, dict):
        return {name: _tensors(each) for name, each in given.items()}
    if isinstance(given, tuple | list) and not isinstance(given, torch.Size):
        return type(given)(_tensors(each) for each in given)
    return given


def _argument(arguments: tuple[Any, ...], named: Mapping[str, Any], place: int, name: str, default: Any) -> Any:
    return arguments[place] if len(arguments) > place else named.get(name, default)


def _is_spatial(axes: Any, given: _Features) -> bool:
    return isinstance(axes, Sequence) and all(axis % given.tensor.dim() > 1 for axis in axes)


def _flattened(given: _Features, output: torch.Tensor) -> _Features:
    return _Features(output, given.channels, given.span * math.prod(given.tensor.shape[2:]))


def _sliced(given: _Features, index: tuple[Any, ...], output: torch.Tensor) -> _Features:
    if not all(isinstance(each, slice) for each in index) or index[0] != slice(None) or given.span != 1:
        raise _UnknownError(f"indexing by {index}")
    return _Features(output, given.channels[index[1]] if len(index) > 1 else given.channels)
