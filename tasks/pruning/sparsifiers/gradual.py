"""Gradual pruning: the mask closes while the network trains."""

from __future__ import annotations

from typing import ClassVar, Literal, Self, cast

from pydantic import Field, model_validator
from torch import nn

from tasks.component import kind_of
from tasks.models.prunable import prunable
from tasks.pruning import Saliency
from tasks.pruning.candidate import Candidate
from tasks.pruning.magnitude import Magnitude
from tasks.pruning.mask import Mask
from tasks.pruning.sparsifiers import Change, Stage
from tasks.pruning.sparsifiers.to_density import Aim, ToDensity, top
from tasks.seeds import generator


class Gradual(ToDensity):
    """Gradual magnitude pruning, sparser along a cubic while training goes on (Zhu & Gupta 2018, eq. 1).

    Of a layer's n weights at the beginning and m in the end, m + (n - m) (1 - t)^3 are left when the share t of the
    time between `begin` and `end` is over, rounded; of all layers together if they are ranked together. Pruned weights
    do not come back: each mask lies in the one before. A training that begins after `begin` starts where the cubic is.
    """

    prunes: ClassVar[bool] = True

    kind: Literal["gradual"] = "gradual"
    saliency: Saliency = Magnitude()
    """What ranks the weights; one that looks at the weights alone."""
    begin: float = Field(default=0.0, ge=0, lt=1)
    """Share of the schedule after which pruning begins."""
    end: float = Field(default=0.75, gt=0, le=1)
    """Share of the schedule after which `density` is reached; what is left of it is trained under the last mask."""
    every: int = Field(default=100, ge=1)
    """Steps between two prunings."""
    seed: int = Field(default=0, ge=0)
    """Of a random saliency."""

    @model_validator(mode="after")
    def _begins_before_it_ends(self) -> Self:
        if self.begin >= self.end:
            raise ValueError(f"begin must be less than end, but they are {self.begin} and {self.end}")
        return self

    @model_validator(mode="after")
    def _needs_the_weights_alone(self) -> Self:
        if self.saliency.sees != "weights":
            kind = kind_of(type(self.saliency))
            raise ValueError(f"saliency: {kind} looks at more than the weights, which is all that gradual pruning sees")
        if self.saliency.within_layers and self.scope == "global":
            raise ValueError("scope: this saliency ranks weights within their layer; give layerwise, uniform or erk")
        return self

    def memory(self, model: nn.Module, mask: Mask | None) -> nn.Module:
        """How many weights each layer begins and ends with, which no checkpoint needs.

        Raises:
            ValueError: fewer weights are left than should be kept, or the spared layer leaves none to the rest.
        """
        return self.aim(model, mask)

    def after_step(self, model: nn.Module, memory: nn.Module, stage: Stage) -> Change | None:
        """The next mask, every so many steps.

        Raises:
            ValueError: a layer would be left empty, or a weight is not finite.
        """
        first, last = round(self.begin * stage.steps), round(self.end * stage.steps)
        if stage.step < last and (stage.step <= first or (stage.step - first) % self.every):
            return None
        mask, aim = cast(Mask, stage.mask), cast(Aim, memory)
        ahead = 1 - (stage.step - first) / (last - first) if stage.step < last else 0.0
        quotas = [
            (names, stay + round((sum(aim.within.layer_nnz[name] for name in names) - stay) * ahead**3))
            for names, stay in aim.quotas
        ]
        if all(sum(mask.layer_nnz[name] for name in names) == stay for names, stay in quotas):
            return None
        weights = {name: kernel.detach().cpu() for name, kernel in prunable(model).items()}
        chance = generator(self.seed, "prune", stage.step)
        sparser = top(mask, self.saliency.score(Candidate(weights, mask, chance)), quotas)
        for name, kept in sparser.layer_nnz.items():
            if not kept:
                raise ValueError(
                    f"density {self.density} leaves none of the {mask.layer_nnz[name]} weights of '{name}' at step "
                    f"{stage.step}; prune less, spare the layer, or choose a scope that gives every layer its share"
                )
        return Change(mask=sparser)
