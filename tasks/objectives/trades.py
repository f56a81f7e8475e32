"""The trade-off between accuracy and robustness as a weight."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from tasks.attacks.ascent import Gradient, ascend, evaluating
from tasks.attacks.ball import ball
from tasks.moment import Moment
from tasks.objectives.adversarial import Attacked, Iterated, beside


class TRADES(Iterated):
    """TRADES: cross-entropy plus beta times the divergence that an attack can cause (Zhang et al. 2019).

    The loss is `CE(f(x), y) + beta * KL(f(x) || f(x'))`, both means over the batch, where `x'` maximises the divergence
    in the ball, seen in evaluation mode. Its gradient goes through `f(x)` and `f(x')`. With `beta` zero there is no
    attack: the standard objective.
    """

    kind: Literal["trades"] = "trades"
    beta: float = Field(default=6.0, ge=0)
    """Weight of robustness; the paper takes 1 to 10."""

    def passes(self) -> int:
        """One for each step of the attack and one for each term of the loss.

        The forward pass that fixes the attack's reference is not counted, as it goes no way back.
        """
        return self.steps + 2 if self.beta else 1

    def loss(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, moment: Moment) -> torch.Tensor:
        """The mean cross-entropy on clean images plus the weighted mean divergence."""
        if not self.beta:
            return F.cross_entropy(model(images), labels)
        return super().loss(model, images, labels, moment)

    def perturb(
        self,
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        epsilon: float | torch.Tensor,
        moment: Moment,
    ) -> torch.Tensor:
        """The last iterate of an ascent on the divergence."""
        start = beside(images, moment.generator)  # the divergence has no gradient at the images
        with evaluating(model):
            gradient_of = _divergence_gradient(model, images)
            return ascend(gradient_of, start, ball(self.norm, images, epsilon), self.step(epsilon), self.steps)

    def outer(
        self,
        model: nn.Module,
        images: torch.Tensor,
        perturbed: torch.Tensor,
        labels: torch.Tensor,
        moment: Moment,
    ) -> Attacked:
        """Both terms; the clean branch is not held fixed."""
        logits, attacked = model(images), model(perturbed)
        divergence = F.kl_div(
            F.log_softmax(attacked, dim=1), F.log_softmax(logits, dim=1), reduction="batchmean", log_target=True
        )
        return Attacked(F.cross_entropy(logits, labels) + self.beta * divergence, attacked)


def _divergence_gradient(model: nn.Module, images: torch.Tensor) -> Gradient:
    """The gradient of the divergence from the clean prediction.

    That prediction is constant here, so the cross-entropy to it has the same gradient as the divergence.
    """
    with torch.no_grad():
        reference = F.softmax(model(images), dim=1)

    def gradient_of(perturbed: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(model(perturbed), reference, reduction="sum")
        return torch.autograd.grad(loss, perturbed)[0]

    return gradient_of
