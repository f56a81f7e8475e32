"""A network for other classes: its body as it was, its output layer drawn anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from tasks.data import Dataset
from tasks.models import Architecture
from tasks.models.initialise import Initialiser, initialise
from tasks.models.prunable import output_layer, prunable
from tasks.models.weights import load_weights, weights_to_bytes
from tasks.pruning.mask import Mask
from tasks.task import Context, Result, Stored, Task


class FreshHead(Task):
    """Draws a new output layer, as tickets of COLT get for other data (Hossain et al. 2022, arXiv 2212.12770).

    Takes `start` (`weights.safetensors`) and perhaps `mask` (`mask.safetensors`), both of the same architecture for
    these or for other data; yields `weights.safetensors` at step 0, for `train` to start from, and with a mask
    `mask.safetensors`, which keeps all of the new output layer. What the network knows of its images (their mean and
    deviation) is that of the new data.

    Pruned weights of `start` are left as they are: training under the mask zeroes them, and so one under a control can
    start from the same file.
    """

    kind: Literal["fresh-head"] = "fresh-head"
    data: Dataset
    """What the network is for."""
    architecture: Architecture
    """The network."""
    initialiser: Initialiser = "default"
    """How the output layer is drawn."""
    init_seed: int = Field(default=0, ge=0)
    """Of the output layer, and of nothing else."""

    def run(self, context: Context, **inputs: Stored) -> Result:
        """The network with its new output layer.

        Raises:
            ValueError: the body of `start`, or its mask, is not one of this network.
        """
        model = initialise(self.architecture, self.data.signature(), self.init_seed, self.initialiser)
        start = load_weights(inputs["start"].read("weights.safetensors"))
        given = body_of(start.tensors, start.output_layer)
        own = body_of(model.state_dict(), output_layer(model))
        require_same_body(given, own)
        model.load_state_dict({**model.state_dict(), **given})
        metrics = {"step": 0, "density": 1.0}
        files = {"weights.safetensors": weights_to_bytes(model)}
        if "mask" in inputs:
            mask = _with_whole_head(Mask.from_bytes(inputs["mask"].read("mask.safetensors")), model)
            metrics |= mask.summary()
            files["mask.safetensors"] = mask.to_bytes()
        return Result(metrics, files)


def body_of(state: Mapping[str, torch.Tensor], output: str) -> dict[str, torch.Tensor]:
    """What does not depend on the classes and the statistics of the data: all but output layer and normalisation.

    Args:
        state: parameters and buffers by name.
        output: the kernel that yields the logits.
    """
    head = output.removesuffix("weight")
    return {name: tensor for name, tensor in state.items() if not name.startswith((head, "normalise."))}


def require_same_body(given: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> None:
    """Compares two bodies by names and shapes.

    Raises:
        ValueError: they differ; names the first difference.
    """
    for name in sorted({*given, *own}):
        shapes = [str(tuple(body[name].shape)) if name in body else "missing" for body in (given, own)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"the body does not fit: '{name}' is {shapes[0]} where it comes from and {shapes[1]} here")


def _with_whole_head(mask: Mask, model: nn.Module) -> Mask:
    """The mask for this network, with all of its output layer."""
    weights, output = prunable(model), output_layer(model)
    whole = Mask({**mask, output: torch.ones(weights[output].shape, dtype=torch.bool)})
    whole.require_fit(weights)
    return whole
