"""NSGA-II."""

from __future__ import annotations

from typing import Literal

from optuna.samplers import BaseSampler, NSGAIISampler
from pydantic import Field

from search_spaces.samplers.sampler import SamplerModel, seed_of
from search_spaces.space import Space


class NSGA2(SamplerModel):
    """Non-dominated sorting genetic algorithm II (Deb et al. 2002): for two or three objectives and large budgets.

    A parameter that some trials leave out is drawn at random. Trials that break a constraint come last.
    """

    kind: Literal["nsga2"] = "nsga2"
    population: int = Field(default=20, ge=2)
    """Trials in a generation, of which the first is drawn at random: the budget should hold several."""
    crossover: float = Field(default=0.9, ge=0, le=1)
    """Chance that a child has two parents rather than one."""
    swap: float = Field(default=0.5, ge=0, le=1)
    """Chance that a parameter of such a child comes from the second parent."""
    mutation: float | None = Field(default=None, ge=0, le=1)
    """Chance that a parameter is drawn anew; one over their number unless given."""

    @property
    def replays(self) -> bool:
        """Generations are kept beside the asks."""
        return True

    def build(self, space: Space, key: str, number: int) -> BaseSampler:
        """The generation's choice for this one trial."""
        return NSGAIISampler(
            population_size=self.population,
            crossover_prob=self.crossover,
            swapping_prob=self.swap,
            mutation_prob=self.mutation,
            seed=seed_of(key, number),
        )
