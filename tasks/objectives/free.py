"""Adversarial training for the price of standard training."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from tasks.attacks.ball import Norm
from tasks.data import Signature
from tasks.moment import Moment
from tasks.objectives.adversarial import Adversarial, per_image


class Free(Adversarial):
    """Free adversarial training: one backward pass for weights and perturbation (Shafahi et al. 2019, algorithm 1).

    Each batch is trained on several times in a row. The backward pass of the loss gives the gradient of the perturbed
    images too, and the perturbation that the next step meets has climbed along its sign. It begins at zero and is kept
    from batch to batch: that of an example is where the example in its place of the batch before has left it. So
    attack and loss see the same network, in training mode.

    The gradient is that of the image as the network sees it, cut to [0, 1]. (The authors' code takes it before the cut,
    which holds a pixel's perturbation still where it points out of [0, 1].)
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf",)

    kind: Literal["free"] = "free"
    replay: int = Field(default=8, ge=1)
    """Steps in a row on the same batch, m in the paper: an epoch of the schedule then shows 1/m of the examples."""
    relative_step: float = Field(default=1.0, gt=0)
    """How far the perturbation climbs at each step, as a share of the radius."""

    @property
    def replays(self) -> int:
        """`replay`."""
        return self.replay

    def passes(self) -> int:
        """The one of the loss."""
        return 1

    def memory(self, data: Signature, examples: int, batch: int) -> nn.Module:
        """`change`, the perturbation of every place in a batch, (batch, C, H, W), beside that of the budget."""
        memory = super().memory(data, examples, batch)
        memory.register_buffer("change", torch.zeros(batch, data.channels, data.height, data.width))
        return memory

    def perturb(
        self,
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        epsilon: float | torch.Tensor,
        moment: Moment,
    ) -> torch.Tensor:
        """The images with the perturbation of the steps before.

        They ask for a gradient: when a backward pass brings it, the remembered perturbation moves on.
        """
        remembered = moment.memory.get_buffer("change")[: len(images)]
        radius = per_image(epsilon)
        change = remembered.clamp(-radius, radius)

        def climb(gradient: torch.Tensor) -> None:
            # Where a loss scaler has let it overflow to NaN the sign is 0, and the pixel waits for the next step.
            remembered.copy_((change + gradient.sign() * (self.relative_step * radius)).clamp_(-radius, radius))

        perturbed = (images + change).clamp_(0, 1).requires_grad_()
        perturbed.register_hook(climb)  # type: ignore[no-untyped-call]
        return perturbed
