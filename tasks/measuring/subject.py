"""What is measured: a trained network, on chosen examples of a split."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from tasks.data import Dataset, Examples, Split
from tasks.data.splits import stratified
from tasks.measuring.gauge import Gauge
from tasks.measuring.input_gradient import with_fast_input_gradients
from tasks.models import Architecture
from tasks.models.weights import restore
from tasks.task import Stored

FILES = {"last": "weights.safetensors", "best": "best.safetensors"}


def load_model(
    architecture: Architecture,
    data: Dataset,
    trained: Stored,
    weights: Literal["last", "best"],
    device: torch.device,
) -> Gauge:
    """A trained network in evaluation mode, without gradients for its weights, as attacks need it.

    Raises:
        ValueError: the weights do not fit the architecture.
    """
    model = load_network(architecture, data, trained, weights, device)
    return Gauge(with_fast_input_gradients(model) if device.type == "cpu" else model)


def load_network(
    architecture: Architecture,
    data: Dataset,
    trained: Stored,
    weights: Literal["last", "best"],
    device: torch.device,
) -> nn.Module:
    """A trained network as it was built, in evaluation mode, without gradients for its weights.

    Raises:
        ValueError: the weights do not fit the architecture.
    """
    with torch.random.fork_rng(devices=[]):  # building draws initial weights, which are overwritten at once
        model = architecture.build(data.signature())
    restore(model, trained.read(FILES[weights]))
    return model.to(device).eval().requires_grad_(False)


def choose_examples(data: Dataset, split: Split, examples: int | None, seed: int) -> tuple[torch.Tensor, Examples]:
    """The indices in the split, (N,) int64, and the examples there: all, or so many drawn evenly over the classes.

    Raises:
        ValueError: the split has fewer examples, or none.
    """
    everything = data.load(split)
    if not len(everything):
        raise ValueError(f"the {split} split is empty: there is nothing to measure on")
    if examples is None:
        return torch.arange(len(everything)), everything
    if examples > len(everything):
        raise ValueError(f"examples is {examples}, but the {split} split holds {len(everything)}")
    indices = torch.from_numpy(stratified(everything.labels.numpy(), examples, seed, "examples"))
    return indices, Examples(everything.images[indices], everything.labels[indices])
