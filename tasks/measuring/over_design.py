"""Which training radius serves best against an attack, without choosing and measuring on the same examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from tasks.measuring.compare import NORMAL_QUANTILE
from tasks.measuring.intervals import CONFIDENCE


@dataclass(frozen=True)
class BestTraining:
    """The best training radius against attacks of one radius."""

    delta: float
    """Radius of the attacks."""
    epsilon: float
    """Radius of the training that left most examples standing, the smaller of equals."""
    accuracy: float
    """Their share, over all replicates: a maximum, and flattered as such."""
    chosen: tuple[float, ...]
    """The radii that were chosen when `gain` was measured."""
    gain: float | None
    """How much more accurate a choice like this is than training at `delta` itself; None if no training was.

    Neither examples nor trainings serve for both: for each replicate the radius is chosen by the others, on one half of
    the examples, and measured on the other half. With one replicate it is chosen and measured on the same trainings,
    and the luck of a seed counts as gain.
    """
    low: float | None
    """Lower end of an approximate 95 % interval of `gain`, for other trainings and other examples: Student's over
    replicates, and never as if the examples were all that there are. With one replicate it knows nothing of how
    trainings differ."""
    high: float | None
    """Upper end."""


def best_training(delta: float, standing: Mapping[float, Sequence[torch.Tensor]]) -> BestTraining:
    """Compares trainings at several radii against attacks of one (the over-design of Sridhar et al. 2022, section 4).

    Args:
        delta: radius of the attacks.
        standing: for each radius of training the replicates in one order, each (N,) bool: which of the same N examples
            stand.

    Raises:
        ValueError: there are fewer than two examples, or the replicates differ in number or in examples.
    """
    epsilons = sorted(standing)
    if len({len(standing[epsilon]) for epsilon in epsilons}) != 1:
        raise ValueError("every training radius needs the same number of replicates")
    # (radii of training, replicates, examples)
    stands = torch.stack([torch.stack([*standing[epsilon]]) for epsilon in epsilons]).double()
    if stands.shape[2] < 2:
        raise ValueError("choosing and measuring needs two examples at least")
    best = _highest(stands)
    found = BestTraining(delta, epsilons[best], float(stands[best].mean()), (), None, None, None)
    if delta not in epsilons:
        return found
    differences, chosen = _cross_fitted(stands, epsilons.index(delta))
    gain, half = float(differences.mean()), _half_width(differences)
    return replace(
        found,
        chosen=tuple(epsilons[place] for place in sorted(chosen)),
        gain=gain,
        low=max(gain - half, -1.0),
        high=min(gain + half, 1.0),
    )


def _cross_fitted(stands: torch.Tensor, matched: int) -> tuple[torch.Tensor, set[int]]:
    """What each replicate gains, (replicates, examples), by radii that others chose on other examples; and these."""
    replicates = stands.shape[1]
    differences, chosen = torch.empty_like(stands[0]), set[int]()
    for replicate in range(replicates):
        others = [other for other in range(replicates) if other != replicate] or [replicate]
        for half in (0, 1):
            best = _highest(stands[:, others, 1 - half :: 2])
            chosen.add(best)
            differences[replicate, half::2] = (stands[best] - stands[matched])[replicate, half::2]
    return differences, chosen


def _highest(stands: torch.Tensor) -> int:
    """The first of the radii with the highest accuracy."""
    return int(stands.mean(dim=(1, 2)).argmax())


def _half_width(differences: torch.Tensor) -> float:
    """Of the 95 % interval of their mean over replicates and examples, both of which might have been others."""
    replicates, examples = differences.shape
    among_examples = float(differences.mean(dim=0).var()) / examples
    if replicates == 1:
        return NORMAL_QUANTILE * math.sqrt(among_examples)
    from scipy.special import stdtrit

    quantile = float(stdtrit(replicates - 1, (1 + CONFIDENCE) / 2))
    among_replicates = float(differences.mean(dim=1).var()) / replicates
    return quantile * math.sqrt(max(among_replicates, among_examples))
