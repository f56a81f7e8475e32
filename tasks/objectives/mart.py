"""Adversarial training that looks at what is misclassified without an attack."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from tasks.moment import Moment
from tasks.objectives.adversarial import Attacked, Iterated, beside

MARGIN = 1e-4
"""Added to the probability of all but the strongest wrong class, so that its logarithm stays above -9.3."""


class MART(Iterated):
    """MART: examples that are misclassified without an attack weigh more in the consistency term (Wang et al. 2020).

    The loss is the mean of `BCE + beta * KL(p || p') * (1 - p_y)`, where `p` and `p'` are the probabilities of the
    image and of its perturbed twin, and `BCE = -log p'_y - log(1 - max_{k != y} p'_k)`: the strongest wrong class is
    pushed down, too. The attack climbs the cross-entropy from next to the image. As in the authors' code, the gradient
    goes through `p` everywhere, and 1.0001 instead of 1 keeps the second logarithm finite.
    """

    kind: Literal["mart"] = "mart"
    beta: float = Field(default=5.0, gt=0)
    """Weight of the consistency term; the authors' scripts take 5, and 6 is in their code too."""

    def passes(self) -> int:
        """One for each step of the attack, one for the images and one for their perturbed twins."""
        return self.steps + 2

    def perturb(
        self,
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        epsilon: float | torch.Tensor,
        moment: Moment,
    ) -> torch.Tensor:
        """The last iterate from next to the image."""
        return self.ascent(model, images, labels, epsilon, beside(images, moment.generator))

    def outer(
        self,
        model: nn.Module,
        images: torch.Tensor,
        perturbed: torch.Tensor,
        labels: torch.Tensor,
        moment: Moment,
    ) -> Attacked:
        """Both terms, in float32: in half precision 1.0001 is 1."""
        logits, attacked = model(images), model(perturbed)
        right = labels.unsqueeze(1)
        log_p, log_q = logits.float().log_softmax(dim=1), attacked.float().log_softmax(dim=1)
        wrong = log_q.exp().scatter(1, right, -1).amax(dim=1)  # below every probability: the true class never wins
        boosted = F.nll_loss(log_q, labels) - (1 + MARGIN - wrong).log().mean()
        divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)
        unsure = 1 - log_p.gather(1, right).squeeze(1).exp()
        return Attacked(boosted + self.beta * (divergence * unsure).mean(), attacked)
