"""Any architecture, its features rounded."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from tasks.data import Signature
from tasks.models import Architecture
from tasks.models.modules import modules_called

NAME = "rounding"
"""Of the module that rounds, below the one whose outputs it rounds: what `bpda` may go `through`."""


class Quantised(Architecture):
    """Another architecture whose features are rounded to multiples of a step, `round(h / s) * s` (Sridhar et al. 2022).

    The weights keep their names: what was trained without the rounding can be measured with it, and the other way
    round. Coarse features hide the gradients of what lies before them, so that attacks by gradients find nothing there:
    `straight-through` gives them the identity for the derivative of the rounding (Bengio et al. 2013), and even then
    robustness is what is left by attacks without gradients and by images made on the network that does not round. With
    `none` the layers before the rounding do not learn either.
    """

    kind: Literal["quantised"] = "quantised"
    base: Architecture
    """The network."""
    after: tuple[str, ...] = Field(min_length=1)
    """Modules whose outputs are rounded: names as `named_modules` lists them, or their last parts."""
    step: float = Field(gt=0)
    """Distance between neighbouring values."""
    gradient: Literal["straight-through", "none"] = "straight-through"
    """The derivative of the rounding: that of the identity, or its own, which is zero."""

    def build(self, data: Signature) -> nn.Module:
        """The network for these images; its parameters, buffers and output layer are those of the base.

        Raises:
            ValueError: the network has no module of such a name, one is rounded already, or the images do not fit it.
        """
        network = self.base.build(data)
        for path, layer in modules_called(self.after, network, "after").items():
            if NAME in dict(layer.named_children()):
                raise ValueError(f"after: the outputs of '{path}' are rounded already")
            layer.add_module(NAME, Rounding(self.step, self.gradient == "straight-through"))
            if not isinstance(layer, nn.Sequential):  # that calls what it holds by itself
                layer.register_forward_hook(_rounded)
        return network


class Rounding(nn.Module):
    """Rounds to the nearest multiple of a step, halves to the even one.

    Args:
        step: above zero.
        straight: whether gradients pass unchanged; they vanish otherwise.
    """

    def __init__(self, step: float, straight: bool) -> None:
        super().__init__()
        self.step = step
        self.straight = straight

    def extra_repr(self) -> str:
        """Its settings."""
        return f"{self.step:g}, {'straight-through' if self.straight else 'no gradient'}"

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features of any shape and float type, in the same."""
        if not self.straight:
            return _to_multiples(features, self.step)
        rounded: torch.Tensor = _StraightThrough.apply(features, self.step)
        return rounded


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(features: torch.Tensor, step: float) -> torch.Tensor:
        return _to_multiples(features, step)

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


def _to_multiples(features: torch.Tensor, step: float) -> torch.Tensor:
    wide = features.to(torch.promote_types(features.dtype, torch.float32))  # float16 overflows where the step is small
    return (wide / step).round().mul(step).to(features.dtype)


def _rounded(layer: nn.Module, given: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    """A hook, and no closure: in a copy of the network it calls the module of the copy."""
    rounded: torch.Tensor = layer.get_submodule(NAME)(output)
    return rounded
