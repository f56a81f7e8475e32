"""Independent draws."""

from __future__ import annotations

from typing import Literal

from optuna.samplers import BaseSampler, RandomSampler

from search_spaces.samplers.sampler import SamplerModel, seed_of
from search_spaces.space import Space


class Random(SamplerModel):
    """Independent draws from the whole space (Bergstra and Bengio 2012): what every other sampler has to beat."""

    kind: Literal["random"] = "random"

    def build(self, space: Space, key: str, number: int) -> BaseSampler:
        """The draw of this one trial."""
        return RandomSampler(seed=seed_of(key, number))
