"""Some parameters fixed, the others searched."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from optuna.samplers import BaseSampler, PartialFixedSampler
from pydantic import BeforeValidator, Field

from search_spaces.checked import nearest
from search_spaces.samplers.cma_es import CMAES
from search_spaces.samplers.gp import GP
from search_spaces.samplers.grid import Grid
from search_spaces.samplers.nsga2 import NSGA2
from search_spaces.samplers.nsga3 import NSGA3
from search_spaces.samplers.qmc import QMC
from search_spaces.samplers.random import Random
from search_spaces.samplers.sampler import SamplerModel, of_its_kind, without_notices
from search_spaces.samplers.tpe import TPE
from search_spaces.space import Space

Free = Annotated[
    CMAES | GP | Grid | NSGA2 | NSGA3 | QMC | Random | TPE,
    Field(discriminator="kind"),
    BeforeValidator(of_its_kind(CMAES, GP, Grid, NSGA2, NSGA3, QMC, Random, TPE)),
]
"""A sampler that searches all parameters."""


class PartiallyFixed(SamplerModel):
    """Another sampler over some of the parameters while the others keep one value (Optuna, Akiba et al. 2019)."""

    kind: Literal["partially-fixed"] = "partially-fixed"
    fixed: dict[str, Any] = Field(min_length=1)
    """Parameter -> its value; of a choice with labels, the label."""
    sampler: Free = TPE()
    """What searches the others."""

    @property
    def replays(self) -> bool:
        """As the other sampler does."""
        return self.sampler.replays

    def check(self, space: Space, objectives: int) -> None:
        """Finds what cannot be fixed, and what the other sampler cannot search.

        Raises:
            ValueError: an unknown parameter, or a value outside its range.
        """
        for name, value in self.fixed.items():
            where = f"sampler partially-fixed: fixed.{name}"
            if name not in space.parameters:
                raise ValueError(f"{where}: no such parameter; {nearest(name, space.parameters)}")
            if not space.parameters[name].contains(value):
                raise ValueError(f"{where}: cannot be {value!r}; allowed: {space.parameters[name].allowed()}")
        self.sampler.check(space.narrowed(self.fixed), objectives)

    def limit(self, space: Space) -> int | None:
        """Those of the other sampler."""
        return self.sampler.limit(space.narrowed(self.fixed))

    def build(self, space: Space, key: str, number: int) -> BaseSampler:
        """The other sampler for this one trial, kept from what is fixed."""
        with without_notices():
            return PartialFixedSampler(self.fixed, self.sampler.build(space.narrowed(self.fixed), key, number))
