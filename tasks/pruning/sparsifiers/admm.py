"""ADMM: weights are drawn towards the nearest sparse ones."""

from __future__ import annotations

from typing import Literal, cast

import torch
from pydantic import Field
from torch import nn

from tasks.models.prunable import prunable
from tasks.pruning.mask import Mask
from tasks.pruning.sparsifiers import Change, Stage
from tasks.pruning.sparsifiers.to_density import Aim, PerKernel, ToDensity


class ADMM(ToDensity):
    """ADMM pruning, a pull towards the nearest sparse weights (Zhang et al. 2018; robust: Ye et al. 2019, eq. 8-12).

    Trains W under the penalty rho / 2 |W - Z + U|^2. Every `every` epochs Z becomes the sparse weights nearest to
    W + U, U grows by W - Z, and rho by its factor, by which U is divided so that the multiplier rho U stays what it is
    (Boyd et al. 2011, section 3.4.1). Z has exactly the weights that it should, among ties the earlier ones. (The
    published code leaves U as it is, and its weights overshoot; its strict threshold loses all of the ties.)

    What comes out is dense, with most weights near zero: a `Prune` to the same density and scope takes them away, and a
    training under its mask makes up for it.
    """

    kind: Literal["admm"] = "admm"
    rho: float = Field(default=1e-3, gt=0)
    """Strength of the pull in the beginning."""
    growth: float = Field(default=1.3, ge=1)
    """What it is multiplied by at every update."""
    largest: float = Field(default=1.0, gt=0)
    """What it does not grow beyond: gradient descent diverges where the learning rate times rho reaches 2."""
    every: int = Field(default=1, ge=1)
    """Epochs between two updates of Z and U."""

    def memory(self, model: nn.Module, mask: Mask | None) -> nn.Module:
        """`rho`, and for every ranked kernel `sparse` (Z) and `dual` (U), in its shape.

        Raises:
            ValueError: fewer weights are left than should be kept, or the spared layer leaves none to the rest.
        """
        aim = self.aim(model, mask)
        kernels = {name: kernel.detach() for name, kernel in prunable(model).items()}
        aim.register_buffer("rho", torch.tensor(self.rho))
        aim.sparse = PerKernel(_nearest(aim, kernels))
        aim.dual = PerKernel({name: torch.zeros_like(kernels[name]) for name in aim.ranked})
        return aim

    def penalty(self, model: nn.Module, memory: nn.Module) -> torch.Tensor:
        """The pull, rho / 2 |W - Z + U|^2."""
        sparse, dual = cast(PerKernel, memory.sparse), cast(PerKernel, memory.dual)
        kernels, aim = prunable(model), cast(Aim, memory)
        distances = [(kernels[name] - sparse[name] + dual[name]).square().sum() for name in aim.ranked]
        return aim.get_buffer("rho") / 2 * torch.stack(distances).sum()

    def after_step(self, model: nn.Module, memory: nn.Module, stage: Stage) -> Change | None:
        """Renews Z, U and rho; changes no mask."""
        if stage.step % (self.every * stage.per_epoch):
            return None
        sparse, dual = cast(PerKernel, memory.sparse), cast(PerKernel, memory.dual)
        aim = cast(Aim, memory)
        kernels = {name: kernel.detach() for name, kernel in prunable(model).items()}
        reached = {name: kernel + dual[name] if name in aim.ranked else kernel for name, kernel in kernels.items()}
        growth = min(self.growth, max(self.largest / float(aim.get_buffer("rho")), 1.0))
        for name, nearest in _nearest(aim, reached).items():
            sparse[name].copy_(nearest)
            dual[name].add_(kernels[name] - nearest).div_(growth)
        aim.get_buffer("rho").mul_(growth)
        return None


def _nearest(aim: Aim, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The ranked kernels of these weights, all but the largest set to zero."""
    mask = aim.drawn({name: weight.abs() for name, weight in weights.items()})
    return {name: weights[name].masked_fill(~mask[name].to(weights[name].device), 0) for name in aim.ranked}
