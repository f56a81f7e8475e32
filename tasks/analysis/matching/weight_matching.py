"""Matching channels by their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field

from tasks.analysis.matching import Matched, Matching, Pair
from tasks.analysis.matching.assignment import assign, gained
from tasks.models.channels import Channels, with_channels
from tasks.seeds import generator

Tensors = Mapping[str, torch.Tensor]

LEAST = 1e-12
"""A gain that is not larger counts as none."""


class WeightMatching(Matching):
    """Weight matching: the largest inner product of all parameters (Ainsworth et al. 2023, Alg. 1, arXiv 2209.04836).

    Coordinate ascent: in random order, each group of channels is assigned anew while the others stay as they are, until
    a whole sweep gains nothing. Kernels, biases and the scales and shifts of norms count; running statistics do not,
    and are permuted with the rest. It ends in a local optimum; another seed may find another one.
    """

    kind: Literal["weight-matching"] = "weight-matching"
    sweeps: int = Field(default=100, ge=1)
    """The most there are."""

    def match(self, pair: Pair) -> Matched:
        """A permutation of every group of the second network's channels.

        Raises:
            ValueError: a weight is NaN or infinite.
        """
        first, second = (
            {name: tensor.detach().cpu().double() for name, tensor in model.named_parameters()}
            for model in (pair.first, pair.second)
        )
        indexed = sorted({use.tensor for group in pair.groups for use in group.uses} & first.keys())
        permutations = [torch.arange(group.size) for group in pair.groups]
        chance = generator(pair.seed, "weight-matching")
        before, sweep, moves = _product(first, second, indexed), 0, True
        while moves and sweep < self.sweeps:
            sweep, moves = sweep + 1, False
            for place in torch.randperm(len(pair.groups), generator=chance).tolist():
                group = pair.groups[place]
                gains = _gains(group, first, second)
                change = assign(gains)
                if gained(gains, change) > LEAST:
                    second = with_channels(second, [(group, change)])
                    permutations[place] = permutations[place][change]
                    moves = True
        return Matched(tuple(permutations), before, _product(first, second, indexed), sweep)


def _gains(group: Channels, first: Tensors, second: Tensors) -> torch.Tensor:
    """(n, n) float64: the inner product of each channel of the first with each of the second, over all its weights."""
    gains = torch.zeros(group.size, group.size, dtype=torch.float64)
    positions = torch.arange(group.size)
    for use in group.uses:
        if use.tensor in first:  # else a buffer
            one, other = (
                tensors[use.tensor].index_select(use.axis, use.positions(positions)).movedim(use.axis, 0)
                for tensors in (first, second)
            )
            gains += one.reshape(group.size, -1) @ other.reshape(group.size, -1).T
    return gains


def _product(first: Tensors, second: Tensors, names: list[str]) -> float:
    return float(sum((first[name] * second[name]).sum() for name in names))
