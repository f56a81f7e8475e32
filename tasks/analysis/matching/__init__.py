"""Matchings: which channels of one network do what those of another do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tasks.component import Component
from tasks.data import Dataset
from tasks.models.channels import Channels


@dataclass(frozen=True)
class Pair:
    """Two networks of one architecture; a matching leaves them as they were."""

    first: nn.Module
    """In evaluation mode."""
    second: nn.Module
    """In evaluation mode, on the same device."""
    groups: Sequence[Channels]
    """The channels that may be permuted."""
    data: Dataset
    """What they learned."""
    seed: int
    """Of whatever is drawn."""


@dataclass(frozen=True)
class Matched:
    """What a matching has found."""

    permutations: tuple[torch.Tensor, ...]
    """For each group (size,) int64: which channel of the second network belongs in each place of the first."""
    before: float
    """What is maximised, for the second network as it is."""
    after: float
    """The same for the permuted one."""
    sweeps: int
    """How often every group was visited."""


class Matching(Component):
    """A way to permute the channels of one network so that they meet their like in another."""

    def match(self, pair: Pair) -> Matched:
        """A permutation of every group of the second network's channels.

        Raises:
            ValueError: what it looks at has NaN or infinite values.
        """
        raise NotImplementedError
