"""Magnitude times gradient: weights that the loss depends on least go first."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from tasks.data import Examples
from tasks.pruning import Saliency
from tasks.pruning.candidate import Candidate
from tasks.pruning.gradients import magnitude_times_gradient, require_examples


class MagnitudeGradient(Saliency):
    """Magnitude times gradient, |w g|, of a trained network (Blalock et al. 2020, GlobalMagGrad and LayerMagGrad).

    To first order that is by how much the loss changes when the weight is gone. `g` is the gradient of the mean
    cross-entropy over training images, with the network in evaluation mode; published code takes that of one batch.
    """

    kind: Literal["magnitude-gradient"] = "magnitude-gradient"
    sees: ClassVar = "data"
    draws: ClassVar = True

    examples: int | None = Field(default=None, ge=1)
    """How many training images, drawn evenly over the classes; all unless given."""

    def check(self, examples: Examples) -> None:
        """Counts the examples."""
        require_examples(self.examples, examples)

    def score(self, network: Candidate) -> dict[str, torch.Tensor]:
        """|w g| for every weight.

        Raises:
            ValueError: there are fewer training examples.
        """
        return magnitude_times_gradient(network, self.examples)

    def sample_steps(self, examples: Examples) -> int:
        """One pass over the examples."""
        return self.examples or len(examples)
