"""Matching channels by what they say of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from tasks.analysis.matching import Matched, Matching, Pair
from tasks.analysis.matching.assignment import assign, gained
from tasks.data import Examples
from tasks.measuring.predictions import BLOCK, images_at
from tasks.measuring.subject import choose_examples
from tasks.models.channels import Channels, Use

Features = dict[str, torch.Tensor]
"""What goes into each layer, by the name of its kernel."""


class ActivationMatching(Matching):
    """Activation matching: the largest cross-correlation of features (Ainsworth et al. 2023, section 3.1).

    The features of a group are the inputs of all layers that read it; the products of two channels are summed over
    these layers, over images and over positions. The permutation is the least-squares one, found for every group by
    itself and at once.
    """

    kind: Literal["activation-matching"] = "activation-matching"
    examples: int = Field(default=1000, ge=1)
    """How many training examples are looked at, drawn evenly over the classes."""

    def match(self, pair: Pair) -> Matched:
        """A permutation of every group of the second network's channels.

        Raises:
            ValueError: a feature is NaN or infinite, or there are fewer examples.
        """
        _, examples = choose_examples(pair.data, "train", self.examples, pair.seed)
        gains = _correlations(pair, examples)
        permutations = tuple(map(assign, gains))
        before = float(sum(gain.diagonal().sum() for gain in gains))
        after = before + sum(map(gained, gains, permutations))
        return Matched(permutations, before, after, sweeps=1)


def _correlations(pair: Pair, examples: Examples) -> list[torch.Tensor]:
    """For each group (n, n) float64: the products of the first network's channels with the second's."""
    device = next(pair.first.parameters()).device
    reading = [[use for use in group.uses if use.axis == 1] for group in pair.groups]
    kernels = sorted({use.tensor for uses in reading for use in uses})
    gains = [torch.zeros(group.size, group.size, dtype=torch.float64, device=device) for group in pair.groups]
    with _inputs(pair.first, kernels) as ones, _inputs(pair.second, kernels) as others, torch.no_grad():
        for start in range(0, len(examples), BLOCK):
            images = images_at(examples, torch.arange(start, min(start + BLOCK, len(examples))), device)
            pair.first(images)
            pair.second(images)
            for group, uses, gain in zip(pair.groups, reading, gains, strict=True):
                for use in uses:
                    gain += _rows(ones[use.tensor], use, group) @ _rows(others[use.tensor], use, group).T
    return [gain.cpu() for gain in gains]


def _rows(features: torch.Tensor, use: Use, group: Channels) -> torch.Tensor:
    """(n, M) float64: the channels' values at all images and positions."""
    positions = use.positions(torch.arange(group.size)).to(features.device)
    return features.index_select(1, positions).movedim(1, 0).reshape(group.size, -1).double()


@contextmanager
def _inputs(model: nn.Module, kernels: Sequence[str]) -> Iterator[Features]:
    """What goes into these layers at each pass."""
    seen: Features = {}

    def keep(kernel: str) -> Any:
        return lambda _, given: seen.__setitem__(kernel, given[0])

    hooks = [
        model.get_submodule(kernel.removesuffix(".weight")).register_forward_pre_hook(keep(kernel))
        for kernel in kernels
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
