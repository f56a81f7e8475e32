"""Weights as safetensors bytes that also say what may be pruned, so that pruning needs no architecture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from tasks.models.prunable import output_layer, prunable

METADATA = "hedgerow"
"""The one metadata key: safetensors writes several keys in no fixed order, and equal weights must be equal bytes."""


@dataclass(frozen=True)
class Weights:
    """The content of a weights file."""

    tensors: Mapping[str, torch.Tensor]
    """Parameters and buffers by their name in the state dict, on the CPU."""
    prunable: tuple[str, ...]
    """Names of the prunable kernels, in the model's order."""
    output_layer: str
    """Name of the kernel that yields the logits."""

    def kernels(self) -> dict[str, torch.Tensor]:
        """The prunable kernels by name."""
        return {name: self.tensors[name] for name in self.prunable}


def weights_to_bytes(model: nn.Module) -> bytes:
    """Parameters and buffers of a model as safetensors; equal weights give equal bytes on every device and layout.

    Raises:
        ValueError: the model does not declare its output layer.
    """
    layers = {"output_layer": output_layer(model), "prunable": list(prunable(model))}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return save(tensors, metadata={METADATA: json.dumps(layers, sort_keys=True)})


def load_weights(content: bytes) -> Weights:
    """Reads what `weights_to_bytes` wrote.

    Raises:
        ValueError: the bytes are not safetensors, or do not say what is prunable.
    """
    tensors = load_tensors(content)
    header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    if METADATA not in header.get("__metadata__", {}):
        raise ValueError(f"the weights file does not name its prunable layers: metadata '{METADATA}' is missing")
    layers = json.loads(header["__metadata__"][METADATA])
    return Weights(tensors, tuple(layers["prunable"]), layers["output_layer"])


def load_tensors(content: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: the bytes are not safetensors.
    """
    try:
        return load(content)
    except SafetensorError as error:
        raise ValueError(f"{len(content)} bytes are not a safetensors file: {error}") from error


def restore(model: nn.Module, content: bytes) -> None:
    """Puts stored weights into a model, in place and on the model's device.

    Raises:
        ValueError: names or shapes differ; nothing has been changed then.
    """
    stored = load_weights(content).tensors
    own = model.state_dict()
    for name in (*own, *stored):
        if name not in stored or name not in own:
            lacking = "weights file" if name not in stored else "model"
            raise ValueError(f"the weights do not fit the model: the {lacking} has no '{name}'")
        if own[name].shape != stored[name].shape:
            raise ValueError(
                f"the weights do not fit the model: '{name}' is {tuple(stored[name].shape)} in the file "
                f"and {tuple(own[name].shape)} in the model"
            )
    model.load_state_dict(stored)
