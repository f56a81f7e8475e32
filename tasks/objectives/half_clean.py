"""Adversarial training on images with and without an attack."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from tasks.moment import Moment
from tasks.objectives.adversarial import Attacked, Iterated


class HalfClean(Iterated):
    """Half clean, half adversarial: cross-entropy of images and of their perturbed twins (Kurakin et al. 2017).

    The loss is `(CE(f(x), y) + CE(f(x'), y)) / 2` with the `x'` of Madry et al. 2018. Both go through the network as
    one batch: as in the source, batch statistics are those of the mixture. There the two halves hold different
    examples; here each example is in both, which makes this the control of `interpolated`.
    """

    kind: Literal["half-clean"] = "half-clean"

    def passes(self) -> int:
        """One for each step of the attack, one for the images and one for their perturbed twins."""
        return self.steps + 2

    def outer(
        self,
        model: nn.Module,
        images: torch.Tensor,
        perturbed: torch.Tensor,
        labels: torch.Tensor,
        moment: Moment,
    ) -> Attacked:
        """The mean cross-entropy over both halves."""
        logits = model(torch.cat([images, perturbed]))
        return Attacked(F.cross_entropy(logits, labels.repeat(2)), logits[len(images) :])
