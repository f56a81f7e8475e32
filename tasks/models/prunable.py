"""Which tensors of a network may be pruned: one declaration for quotas, reports and costs."""

from __future__ import annotations

import torch
from torch import nn

from tasks.models.network import Network


def prunable(model: nn.Module) -> dict[str, torch.Tensor]:
    """The kernels of linear and convolution layers by parameter name, in the order of the model's definition.

    Biases, norms, class tokens and positional embeddings are never among them.
    """
    return {
        f"{name}.weight".removeprefix("."): layer.weight
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def output_layer(model: nn.Module) -> str:
    """The name of the kernel that yields the logits.

    Raises:
        ValueError: the model does not declare it.
    """
    if not isinstance(model, Network):
        raise ValueError(
            f"{type(model).__name__} does not declare its output layer: build it as tasks.models.network.Network"
        )
    return model.output_layer
