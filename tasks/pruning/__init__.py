"""Pruning: which weights of a network to keep."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from tasks.component import Component
from tasks.data import Examples
from tasks.pruning.candidate import Candidate


class Saliency(Component):
    """How much each weight matters."""

    sees: ClassVar[Literal["weights", "network", "data"]] = "weights"
    """What it looks at: the kernels alone, the network around them too, or training examples as well."""

    draws: ClassVar[bool] = False
    """Whether chance has a part in its scores."""

    rounds: ClassVar[int] = 1
    """Into how many rounds a pruning is divided, each with scores of its own, unless the pruning says otherwise."""

    @property
    def within_layers(self) -> bool:
        """Whether its scores of different layers do not compare, so that no scope may rank them together."""
        return False

    def check(self, examples: Examples) -> None:
        """Finds, before any work starts, what it cannot draw from the training split.

        Raises:
            ValueError: says what is missing.
        """

    def score(self, network: Candidate) -> dict[str, torch.Tensor]:
        """A score for every weight, in the shapes of the weights: the lowest are pruned first.

        Args:
            network: what is to be pruned, and how much of it is left.
        """
        raise NotImplementedError

    def sample_steps(self, examples: Examples) -> int:
        """What one scoring costs: training examples times forward-and-backward passes.

        Args:
            examples: the training split.
        """
        return 0
