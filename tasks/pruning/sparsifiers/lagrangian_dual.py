"""The Lagrangian dual: weights that will be pruned shrink first, the harder the longer they resist."""

from __future__ import annotations

from typing import Literal, cast

import torch
from pydantic import Field
from torch import nn

from tasks.models.prunable import prunable
from tasks.pruning.mask import Mask
from tasks.pruning.sparsifiers import Change, Stage
from tasks.pruning.sparsifiers.to_density import Aim, PerKernel, ToDensity


class LagrangianDual(ToDensity):
    """Lagrangian-dual pruning in the manner of Deadwooding (Kaur, Fioretto & Salekin 2022), reconstructed.

    The paper gives no algorithm in full; this is dual ascent on what its abstract names. The loss is minimised subject
    to a mass of zero outside the weights that will be kept: the largest, selected anew after every epoch. Layer l pays
    lambda_l times the mass of its weights outside, and after every epoch lambda_l grows by `rate` times that mass as a
    share of the layer's whole, so that it rises as long as the constraint is violated, and as fast in small layers as
    in large ones. All lambda begin at zero.

    What comes out is dense, with most weights near zero: a `Prune` to the same density and scope takes them away.
    """

    kind: Literal["lagrangian-dual"] = "lagrangian-dual"
    rate: float = Field(default=0.1, gt=0)
    """By how much lambda grows in an epoch in which all of a layer's mass lies outside."""
    mass: Literal["squared", "absolute"] = "squared"
    """Squares, which shrink large weights faster, or absolute values, which bring small ones to zero."""

    def memory(self, model: nn.Module, mask: Mask | None) -> nn.Module:
        """`multipliers`, one for each ranked kernel, and `outside`, what will not be kept of them.

        Raises:
            ValueError: fewer weights are left than should be kept, or the spared layer leaves none to the rest.
        """
        aim = self.aim(model, mask)
        kernels = {name: kernel.detach() for name, kernel in prunable(model).items()}
        aim.register_buffer("multipliers", torch.zeros(len(aim.ranked)))
        aim.outside = PerKernel(_outside(aim, kernels))
        return aim

    def penalty(self, model: nn.Module, memory: nn.Module) -> torch.Tensor:
        """The sum over layers of lambda times the mass outside."""
        kernels, aim, outside = prunable(model), cast(Aim, memory), cast(PerKernel, memory.outside)
        masses = [self._mass(kernels[name].masked_fill(~outside[name], 0)) for name in aim.ranked]
        return (aim.get_buffer("multipliers") * torch.stack(masses)).sum()

    def after_step(self, model: nn.Module, memory: nn.Module, stage: Stage) -> Change | None:
        """Raises the multipliers and selects anew at the end of an epoch; changes no mask."""
        if stage.step % stage.per_epoch:
            return None
        aim, outside = cast(Aim, memory), cast(PerKernel, memory.outside)
        kernels = {name: kernel.detach() for name, kernel in prunable(model).items()}
        for place, name in enumerate(aim.ranked):
            violation = self._mass(kernels[name].masked_fill(~outside[name], 0))
            if violation > 0:
                aim.get_buffer("multipliers")[place] += self.rate * violation / self._mass(kernels[name])
        for name, positions in _outside(aim, kernels).items():
            outside[name].copy_(positions)
        return None

    def _mass(self, weights: torch.Tensor) -> torch.Tensor:
        return weights.square().sum() if self.mass == "squared" else weights.abs().sum()


def _outside(aim: Aim, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Where the ranked kernels are not among the largest weights."""
    mask = aim.drawn({name: weight.abs() for name, weight in weights.items()})
    return {name: ~mask[name].to(weights[name].device) for name in aim.ranked}
