"""SNIP: weights whose absence the loss would not notice go before training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.pruning.gradients import MagnitudeTimesGradient


class SNIP(MagnitudeTimesGradient):
    """SNIP, connection sensitivity at initialisation from a single batch (Lee et al. 2019, section 4.1).

    The score |g w| is the derivative of the loss with respect to a factor of 1 on the weight. The published one is
    divided by the sum of all, which changes no rank. The network is in evaluation mode: a batch norm that has seen no
    batch leaves its input as it is, where published code normalises by the batch. Meant for initial weights, so for a
    training that stopped at step 0.
    """

    kind: Literal["snip"] = "snip"

    examples: int = Field(default=128, ge=1)
    """Training images of the batch, drawn evenly over the classes."""
