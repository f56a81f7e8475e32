"""Samplers: what to try next. One file each; a recipe names one by its `kind`, alone or with its fields."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from search_spaces.samplers.cma_es import CMAES
from search_spaces.samplers.gp import GP
from search_spaces.samplers.grid import Grid
from search_spaces.samplers.nsga2 import NSGA2
from search_spaces.samplers.nsga3 import NSGA3
from search_spaces.samplers.partially_fixed import PartiallyFixed
from search_spaces.samplers.qmc import QMC
from search_spaces.samplers.random import Random
from search_spaces.samplers.sampler import SamplerModel, of_its_kind
from search_spaces.samplers.tpe import TPE

MEMBERS: tuple[type[SamplerModel], ...] = (CMAES, GP, Grid, NSGA2, NSGA3, PartiallyFixed, QMC, Random, TPE)

Sampler = Annotated[
    CMAES | GP | Grid | NSGA2 | NSGA3 | PartiallyFixed | QMC | Random | TPE,
    Field(discriminator="kind"),
    BeforeValidator(of_its_kind(*MEMBERS)),
]
"""Any of them, in a recipe: `tpe`, or `{kind: tpe, startup: 8}`."""

__all__ = [
    "CMAES",
    "GP",
    "MEMBERS",
    "NSGA2",
    "NSGA3",
    "QMC",
    "TPE",
    "Grid",
    "PartiallyFixed",
    "Random",
    "Sampler",
    "SamplerModel",
]
