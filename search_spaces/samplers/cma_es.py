"""Covariance matrix adaptation."""

from __future__ import annotations

from typing import Literal

from optuna.samplers import BaseSampler, CmaEsSampler
from pydantic import Field

from search_spaces.dimensions import Choice
from search_spaces.samplers.sampler import SamplerModel, seed_of, without_notices
from search_spaces.space import Space


class CMAES(SamplerModel):
    """Covariance matrix adaptation evolution strategy (Hansen and Ostermeier 2001): one objective, numbers only.

    For ten or more parameters and hundreds of trials. Does not look at constraints: they decide only which trial is
    the best.
    """

    kind: Literal["cma-es"] = "cma-es"
    startup: int = Field(default=1, ge=1)
    """Trials at random before the first generation."""
    population: int | None = Field(default=None, ge=3)
    """Trials in a generation; 4 + 3 ln(parameters) unless given."""
    margin: bool = False
    """Whether whole and stepped numbers keep a chance to change (CMA-ES with margin, Hamano et al. 2022)."""

    @property
    def replays(self) -> bool:
        """Generations are kept beside the asks."""
        return True

    def check(self, space: Space, objectives: int) -> None:
        """Finds what it cannot search.

        Raises:
            ValueError: several objectives, a choice, or a parameter that some trials leave out.
        """
        if objectives > 1:
            raise ValueError(f"sampler cma-es: takes 1 objective, not {objectives}; nsga2 and tpe take several")
        for name, dimension in space.varying().items():
            if isinstance(dimension, Choice):
                raise ValueError(f"sampler cma-es: parameters.{name}: takes int and float, no choice; tpe takes all")
            if dimension.when:
                raise ValueError(f"sampler cma-es: parameters.{name}: takes no `when`; tpe does")

    def build(self, space: Space, key: str, number: int) -> BaseSampler:
        """The generation's draw for this one trial."""
        with without_notices():
            return CmaEsSampler(
                n_startup_trials=self.startup,
                popsize=self.population,
                with_margin=self.margin,
                warn_independent_sampling=False,
                seed=seed_of(key, number),
            )
