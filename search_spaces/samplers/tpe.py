"""Tree-structured Parzen estimator."""

from __future__ import annotations

from typing import Literal

from optuna.samplers import BaseSampler, TPESampler
from pydantic import Field

from search_spaces.samplers.sampler import SamplerModel, seed_of
from search_spaces.space import Space


class TPE(SamplerModel):
    """Tree-structured Parzen estimator (Bergstra et al. 2011; several objectives: Ozaki et al. 2022).

    Models the good trials and the rest by one density each and tries where their ratio is largest. Trials that still
    run count among the rest, so that those asked side by side keep apart. Looks at constraints.
    """

    kind: Literal["tpe"] = "tpe"
    startup: int = Field(default=10, ge=0)
    """Trials at random before the first that follows the model."""
    candidates: int = Field(default=24, gt=0)
    """Draws among which the one with the best ratio is taken."""
    joint: bool | None = None
    """Whether parameters are modelled together; unless given, so for one objective and each by itself for several."""

    def build(self, space: Space, key: str, number: int) -> BaseSampler:
        """The estimator of this one trial."""
        return TPESampler(
            n_startup_trials=self.startup,
            n_ei_candidates=self.candidates,
            multivariate=self.joint,
            seed=seed_of(key, number),
        )
