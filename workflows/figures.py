"""What a search may look at: the figures that a finished workflow comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Figures:
    """What a finished workflow measured, by name.

    Names are the same in every workflow: `clean` and `robust@EPSILON` (accuracies, as shares), `clean-drop` (accuracy
    lost against the network that was not pruned), `sparsity` (share of prunable weights that are gone), `size` (weights
    left, biases included), `latency` (seconds for an image), `sample-steps` (all that its steps cost, as if none were
    shared).
    """

    values: Mapping[str, float]
    outcomes: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """For figures that are accuracies: which examples were right, (examples times replicates,) bool."""
