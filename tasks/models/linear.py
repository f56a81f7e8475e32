"""Linear layers whose float32 products on a CPU go through oneDNN.

PyTorch sends them to MKL, which on AMD's processors uses half of their vector width: a product of LeNet-300-100 takes
about twice as long. Convolutions go through oneDNN already.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

WORTHWHILE = 4096
"""Weights from which on the faster product outweighs its slower call."""


class Linear(nn.Linear):
    """`torch.nn.Linear`, faster where it can be; gradients of any order, results equal up to rounding."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name of the base class
        """Images or features (N, in) to (N, out)."""
        if not _goes_through_onednn(input, self.weight):
            return super().forward(input)
        product = _product(input, self.weight)
        return product if self.bias is None else product + self.bias


class _TransposedProduct(torch.autograd.Function):
    """`left @ right.T`; its gradients are two more of the same, so that they can be differentiated again."""

    @staticmethod
    def forward(context: Any, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(left, right)
        return cast(torch.Tensor, torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], ""))

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        (gradient,) = gradients
        left, right = context.saved_tensors
        wants_left, wants_right = context.needs_input_grad
        return (
            _product(gradient, right.t()) if wants_left else None,
            _product(gradient.t(), left.t()) if wants_right else None,
        )


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return cast(torch.Tensor, _TransposedProduct.apply(left, right))


def _goes_through_onednn(features: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        features.device.type == "cpu"
        and features.dim() == 2
        and features.dtype == weight.dtype == torch.float32
        and weight.numel() >= WORTHWHILE
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )
