"""Two networks on the same examples."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tasks.measuring.outcomes import Outcomes

NORMAL_QUANTILE = 1.959964
"""Of a 95 % interval."""


@dataclass(frozen=True)
class Difference:
    """How much more accurate the second of two networks is than the first, at one epsilon."""

    epsilon: float
    """Radius in the threat's norm; 0 is without attack."""
    first_only: int
    """Examples that only the first gets right."""
    second_only: int
    """Examples that only the second gets right."""
    difference: float
    """Accuracy of the second minus that of the first."""
    low: float
    """Lower end of its 95 % interval (Bonett & Price 2012: adjusted Wald for paired proportions)."""
    high: float
    """Upper end."""
    p_value: float
    """Of the exact test that both are equally accurate (McNemar 1947, as a binomial test)."""


def paired(first: Outcomes, second: Outcomes) -> list[Difference]:
    """Compares two networks example by example, without attack and at every epsilon that both were attacked at.

    On the same examples most outcomes agree, and only those that do not tell the networks apart: far fewer examples are
    needed than by comparing two intervals.

    Raises:
        ValueError: the outcomes are of different examples or in different norms.
    """
    if not torch.equal(first.indices, second.indices) or not torch.equal(first.labels, second.labels):
        raise ValueError("only outcomes on the same examples, in the same order, can be compared in pairs")
    if first.threat.norm != second.threat.norm:
        raise ValueError(f"outcomes in norm {first.threat.norm} and {second.threat.norm} cannot be compared")
    shared = [epsilon for epsilon in first.threat.epsilons if epsilon in second.threat.epsilons]
    return [
        _difference(0.0, first.correct, second.correct),
        *(_difference(epsilon, first.standing(epsilon), second.standing(epsilon)) for epsilon in shared),
    ]


def _difference(epsilon: float, first: torch.Tensor, second: torch.Tensor) -> Difference:
    from scipy.special import bdtr

    count = len(first)
    first_only, second_only = apart_on(first, second)
    apart = first_only + second_only
    p_value = min(1.0, 2 * float(bdtr(min(first_only, second_only), apart, 0.5))) if apart else 1.0
    low, high = adjusted_wald(first_only, second_only, count)
    return Difference(
        epsilon=epsilon,
        first_only=first_only,
        second_only=second_only,
        difference=(second_only - first_only) / count,
        low=low,
        high=high,
        p_value=p_value,
    )


def apart_on(first: torch.Tensor, second: torch.Tensor) -> tuple[int, int]:
    """On how many examples, (N,) bool each, only the first network is right, and on how many only the second."""
    return int((first & ~second).sum()), int((second & ~first).sum())


def adjusted_wald(
    first_only: int, second_only: int, count: int, quantile: float = NORMAL_QUANTILE
) -> tuple[float, float]:
    """The ends of an interval for a difference of paired proportions (Bonett & Price 2012: adjusted Wald).

    Args:
        first_only: examples that only the first network gets right.
        second_only: examples that only the second gets right.
        count: all examples.
        quantile: of the standard normal distribution: half of what is left out of the interval lies above it.

    Returns:
        The least and the largest by how much the second is more accurate.
    """
    lost, won = (first_only + 1) / (count + 2), (second_only + 1) / (count + 2)
    half = quantile * float((won + lost - (won - lost) ** 2) / (count + 2)) ** 0.5
    return max(won - lost - half, -1.0), min(won - lost + half, 1.0)
