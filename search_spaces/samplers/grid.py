"""Every combination."""

from __future__ import annotations

from itertools import islice
from typing import Literal

from numpy.random import RandomState
from optuna.samplers import BaseSampler

from search_spaces.samplers.sampler import Chosen, SamplerModel, seed_of
from search_spaces.space import Space

LARGEST = 100_000
"""A grid of more is a mistake: nobody waits for its end."""


class Grid(SamplerModel):
    """Every combination once, in an order drawn from the study's seed (what Bergstra and Bengio 2012 argue against).

    The search ends when all are tried. A float needs a `step`.
    """

    kind: Literal["grid"] = "grid"

    def check(self, space: Space, objectives: int) -> None:
        """Finds what it cannot list.

        Raises:
            ValueError: a float without a step, or more combinations than anybody tries.
        """
        size = space.size()
        if size is None:
            name = next(name for name, dimension in space.varying().items() if dimension.values() is None)
            raise ValueError(f"sampler grid: parameters.{name}: a float needs a `step` here")
        if size > LARGEST:
            raise ValueError(f"sampler grid: the space has {size:,} combinations; allowed: up to {LARGEST:,}")

    def limit(self, space: Space) -> int | None:
        """How many combinations there are."""
        return space.size()

    def build(self, space: Space, key: str, number: int) -> BaseSampler:
        """The combination of this one trial."""
        place = int(RandomState(seed_of(key)).permutation(space.size() or 0)[number])
        return Chosen(space, next(islice(space.combinations(), place, None)))
