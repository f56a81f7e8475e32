"""Bayesian optimisation with a Gaussian process."""

from __future__ import annotations

from typing import Literal

from optuna.samplers import BaseSampler, GPSampler
from pydantic import Field

from search_spaces.samplers.sampler import SamplerModel, seed_of
from search_spaces.space import Space


class GP(SamplerModel):
    """Gaussian process and log expected improvement (Ament et al. 2023; several objectives: Daulton et al. 2020).

    The fewest trials for a few continuous parameters; each ask costs a fit, which grows with the cube of their number.
    A parameter that some trials leave out is drawn at random. Looks at constraints and at trials that still run.
    """

    kind: Literal["gp"] = "gp"
    startup: int = Field(default=10, ge=1)
    """Trials at random before the first that follows the model."""

    def build(self, space: Space, key: str, number: int) -> BaseSampler:
        """The process of this one trial."""
        return GPSampler(n_startup_trials=self.startup, warn_independent_sampling=False, seed=seed_of(key, number))
