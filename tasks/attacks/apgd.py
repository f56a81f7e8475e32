"""The attack that sets its own step sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn

from tasks.attacks.auto_step import AutoStep
from tasks.attacks.draws import Draws
from tasks.attacks.losses import cross_entropy, dlr
from tasks.attacks.strongest import Strongest

_LOSSES = {"ce": cross_entropy, "dlr": dlr}


class APGD(AutoStep):
    """Auto-PGD: ascent with momentum that halves its own steps (Croce & Hein 2020, algorithm 1; L1: 2021).

    Every iterate is tested, the start and the last one included. An example that falls is dropped at once, and only
    those that still stand are started again. In L1 the ascent goes through balls of three, two and one radius; only
    the last counts. AutoAttack asks for 5 restarts there.
    """

    kind: Literal["apgd"] = "apgd"
    loss: Literal["ce", "dlr"] = "ce"
    """What to climb: the cross-entropy, or the difference of logits ratio, which does not fade when the model is
    confident."""

    def label(self) -> str:
        """With the name of the loss."""
        return f"apgd-{self.loss}"

    def search(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        """For each example the first iterate that fools the model, else the one of greatest loss."""
        best = Strongest(images)
        for restart in range(self.restarts):
            self.ascend(model, images, _LOSSES[self.loss], (labels,), epsilon, draws.under(restart), best)
        return best.images

    def fallbacks(self, classes: int) -> Iterator[str]:
        """The margin in place of DLR, below three classes."""
        if self.loss == "dlr" and classes < 3:
            yield f"apgd climbs the margin: DLR needs 3 classes, the data have {classes}"
