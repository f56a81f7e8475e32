"""NSGA-III."""

from __future__ import annotations

from typing import Literal

from optuna.samplers import BaseSampler, NSGAIIISampler
from pydantic import Field

from search_spaces.samplers.sampler import SamplerModel, seed_of, without_notices
from search_spaces.space import Space


class NSGA3(SamplerModel):
    """Non-dominated sorting genetic algorithm III (Deb and Jain 2014): for many objectives and large budgets.

    Spreads the front over reference directions. A parameter that some trials leave out is drawn at random. Trials
    that break a constraint come last.
    """

    kind: Literal["nsga3"] = "nsga3"
    population: int = Field(default=20, ge=2)
    """Trials in a generation, of which the first is drawn at random: the budget should hold several."""
    crossover: float = Field(default=0.9, ge=0, le=1)
    """Chance that a child has two parents rather than one."""
    swap: float = Field(default=0.5, ge=0, le=1)
    """Chance that a parameter of such a child comes from the second parent."""
    mutation: float | None = Field(default=None, ge=0, le=1)
    """Chance that a parameter is drawn anew; one over their number unless given."""
    divisions: int = Field(default=3, ge=1)
    """Parts into which each objective is divided to place the reference directions."""

    @property
    def replays(self) -> bool:
        """Generations are kept beside the asks."""
        return True

    def build(self, space: Space, key: str, number: int) -> BaseSampler:
        """The generation's choice for this one trial."""
        with without_notices():
            return NSGAIIISampler(
                population_size=self.population,
                crossover_prob=self.crossover,
                swapping_prob=self.swap,
                mutation_prob=self.mutation,
                dividing_parameter=self.divisions,
                seed=seed_of(key, number),
            )
