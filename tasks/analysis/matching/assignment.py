"""The linear assignment problem, solved alike on every machine."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

GRID = 2.0**32
"""Gains are told apart down to this part of the largest: sums that differ in their last bits, as they do between
processors, are one gain."""


def assign(gains: torch.Tensor) -> torch.Tensor:
    """The permutation (n,) int64 with the largest sum of `gains[i, permutation[i]]` (Crouse 2016, as in SciPy).

    Among equals it is one that moves the fewest: channels that are dead, or alike, stay where they are.

    Args:
        gains: (n, n) float64, on the CPU.

    Raises:
        ValueError: a gain is NaN or infinite.
    """
    if not gains.isfinite().all():
        raise ValueError("channels cannot be matched: their products are NaN or infinite; has training diverged?")
    largest = float(gains.abs().max())
    if largest == 0:
        return torch.arange(len(gains))
    # Whole numbers below 2^53 add up exactly; staying is worth less than one step of the grid, even n times.
    steps = (gains / largest * GRID).round() * (len(gains) + 1)
    steps.diagonal().add_(1)
    _, permutation = linear_sum_assignment(steps.numpy(), maximize=True)
    return torch.from_numpy(np.asarray(permutation, dtype=np.int64))


def gained(gains: torch.Tensor, permutation: torch.Tensor) -> float:
    """By how much an assignment's sum is larger than that of leaving everything where it is."""
    return float(gains[torch.arange(len(gains)), permutation].sum() - gains.diagonal().sum())
