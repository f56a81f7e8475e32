"""Magnitude times gradient: weights that the loss depends on least go first."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.pruning.gradients import MagnitudeTimesGradient


class MagnitudeGradient(MagnitudeTimesGradient):
    """Magnitude times gradient, |w g|, of a trained network (Blalock et al. 2020, GlobalMagGrad and LayerMagGrad).

    To first order that is by how much the loss changes when the weight is gone. `g` is the gradient of the mean
    cross-entropy over training images, with the network in evaluation mode; published code takes that of one batch.
    """

    kind: Literal["magnitude-gradient"] = "magnitude-gradient"

    examples: int | None = Field(default=None, ge=1)
    """How many training images, drawn evenly over the classes; all unless given."""
