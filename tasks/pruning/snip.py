"""SNIP: weights whose absence the loss would not notice go before training."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from tasks.data import Examples
from tasks.pruning import Saliency
from tasks.pruning.candidate import Candidate
from tasks.pruning.gradients import magnitude_times_gradient, require_examples


class SNIP(Saliency):
    """SNIP, connection sensitivity at initialisation from a single batch (Lee et al. 2019, section 4.1).

    The score |g w| is the derivative of the loss with respect to a factor of 1 on the weight. The published one is
    divided by the sum of all, which changes no rank. The network is in evaluation mode: a batch norm that has seen no
    batch leaves its input as it is, where published code normalises by the batch. Meant for initial weights, so for a
    training that stopped at step 0.
    """

    kind: Literal["snip"] = "snip"
    sees: ClassVar = "data"
    draws: ClassVar = True

    examples: int = Field(default=128, ge=1)
    """Training images of the batch, drawn evenly over the classes."""

    def check(self, examples: Examples) -> None:
        """Counts the examples."""
        require_examples(self.examples, examples)

    def score(self, network: Candidate) -> dict[str, torch.Tensor]:
        """|g w| for every weight.

        Raises:
            ValueError: there are fewer training examples.
        """
        return magnitude_times_gradient(network, self.examples)

    def sample_steps(self, examples: Examples) -> int:
        """One pass over the batch."""
        return self.examples
