"""How sure a measured accuracy is."""

from __future__ import annotations

import torch

CONFIDENCE = 0.95


def clopper_pearson(successes: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact interval for a probability, given so many successes (Clopper & Pearson 1934).

    It covers the truth with at least the given confidence, whatever the truth is.

    Args:
        successes: 0 to `trials`.
        trials: at least 1.
        confidence: in (0, 1), split evenly over both sides.
    """
    from scipy.special import betaincinv  # a tenth of a second, which training need not spend

    tail = (1 - confidence) / 2
    low = betaincinv(successes, trials - successes + 1, tail) if successes else 0.0
    high = betaincinv(successes + 1, trials - successes, 1 - tail) if successes < trials else 1.0
    return float(low), float(high)


def accuracy_of(right: torch.Tensor) -> dict[str, float]:
    """The share of (N,) bool that is true, as `accuracy`, and the ends `low` and `high` of its interval."""
    count = int(right.sum())
    low, high = clopper_pearson(count, len(right))
    return {"accuracy": count / len(right), "low": low, "high": high}
