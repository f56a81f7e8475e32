"""The attack that tries one wrong class after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from tasks.attacks.auto_step import AutoStep
from tasks.attacks.draws import Draws
from tasks.attacks.losses import targeted_dlr
from tasks.attacks.strongest import Strongest


class APGDT(AutoStep):
    """Auto-PGD towards each likely wrong class, on the targeted DLR loss (Croce & Hein 2020, section 4.1 and eq. 7).

    The targets are the classes other than the label, the likeliest on the unperturbed image first; each sees only
    the examples that still stand, and any mistake counts, not only the target. In L1 as APGD; AutoAttack asks for 5
    targets there.
    """

    kind: Literal["apgd-t"] = "apgd-t"
    targets: int = Field(default=9, ge=1)
    """Wrong classes to try; all of them where there are fewer."""

    def search(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        """For each example the first iterate that fools the model, else the one of greatest loss towards any target."""
        with torch.no_grad():
            logits: torch.Tensor = model(images)
        others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
        likeliest = others.argsort(dim=1, descending=True, stable=True)
        best = Strongest(images)
        for rank in range(min(self.targets, logits.shape[1] - 1)):
            goals = (labels, likeliest[:, rank])
            for restart in range(self.restarts):
                self.ascend(model, images, targeted_dlr, goals, epsilon, draws.under(rank, restart), best)
        return best.images

    def fallbacks(self, classes: int) -> Iterator[str]:
        """The difference of two logits in place of DLR, below four classes; fewer targets."""
        if classes < 4:
            yield f"apgd-t climbs the difference of two logits: targeted DLR needs 4 classes, the data have {classes}"
        if classes <= self.targets:
            yield f"apgd-t tries {classes - 1} targets, not {self.targets}: the data have {classes} classes"
