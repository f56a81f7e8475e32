"""Quasi-Monte Carlo."""

from __future__ import annotations

from typing import Literal

from optuna.samplers import BaseSampler
from pydantic import Field
from scipy.stats.qmc import Halton, Sobol

from search_spaces.samplers.sampler import Chosen, SamplerModel, seed_of
from search_spaces.space import Space


class QMC(SamplerModel):
    """A sequence that fills the space evenly (Sobol 1967; Halton 1960), scrambled by default (Owen 1995).

    Trial n is point n of one sequence over all parameters, whatever the results: each parameter by itself is spread
    evenly, those that some trials leave out included. Best with a power of two of trials.
    """

    kind: Literal["qmc"] = "qmc"
    sequence: Literal["sobol", "halton"] = Field(default="sobol")
    """Which one; Halton's has no favourite number of trials."""
    scramble: bool = True
    """Whether the study's seed moves the points; otherwise the first trial sits in the corner of all lowest values."""

    def build(self, space: Space, key: str, number: int) -> BaseSampler:
        """The point of this one trial."""
        varying = space.varying()
        values = {name: dimension.at(0.0) for name, dimension in space.parameters.items()}
        if varying:
            sequence = {"sobol": Sobol, "halton": Halton}[self.sequence]
            points = sequence(len(varying), scramble=self.scramble, seed=seed_of(key))
            if number:
                points.fast_forward(number)
            shares = points.random(1)[0]
            values |= {
                name: dimension.at(float(share))
                for (name, dimension), share in zip(varying.items(), shares, strict=True)
            }
        return Chosen(space, values)
