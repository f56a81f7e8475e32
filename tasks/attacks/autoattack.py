"""The standard evaluation: several attacks that fail for different reasons, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.apgd import APGD
from tasks.attacks.apgd_t import APGDT
from tasks.attacks.ball import Norm
from tasks.attacks.draws import Draws
from tasks.attacks.fab import FAB
from tasks.attacks.fab_t import FABT
from tasks.attacks.losses import margin
from tasks.attacks.square import Square
from tasks.attacks.strongest import Strongest


class AutoAttack(Attack):
    """AutoAttack: four attacks without parameters to tune, each on what the ones before it left (Croce & Hein 2020).

    What breaks is what any of its parts breaks: no part can undo or prevent what another finds. In L1 its members and
    their numbers of restarts and targets are those of Croce & Hein 2021.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")

    kind: Literal["autoattack"] = "autoattack"
    suite: Literal["standard", "plus", "rand"] = "standard"
    """Which attacks, the authors' `version`: `standard` is what results are compared by; `plus` has more restarts and
    untargeted attacks; `rand` averages gradients over 20 passes, for models that draw random numbers."""

    def parts(self) -> tuple[Attack, ...]:
        """The members in the order of the authors' code: the cheap ones that find most come first."""
        norm = self.norm
        if self.suite == "rand":
            return APGD(norm=norm, eot=20), APGD(norm=norm, loss="dlr", eot=20)
        if self.suite == "plus":
            return (
                APGD(norm=norm, restarts=5),
                APGD(norm=norm, loss="dlr", restarts=5),
                FAB(norm=norm, restarts=5),
                Square(norm=norm),
                APGDT(norm=norm),
                FABT(norm=norm),
            )
        restarts, targets = (5, 5) if norm == "l1" else (1, 9)
        return APGD(norm=norm, restarts=restarts), APGDT(norm=norm, targets=targets), FABT(norm=norm), Square(norm=norm)

    def search(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        """For each example the first image of a part that fools the model, else the one of greatest margin."""
        best = Strongest(images)
        for turn, part in enumerate(self.parts()):
            rows = best.standing()
            if not len(rows):
                break
            found = part.search(model, images[rows], labels[rows], epsilon[rows], draws.at(rows).under("part", turn))
            with torch.no_grad():
                logits = model(found)
            best.note(rows, found, margin(logits, labels[rows]), logits.argmax(dim=1) != labels[rows])
        return best.images

    def fallbacks(self, classes: int) -> Iterator[str]:
        """Those of the parts."""
        for part in self.parts():
            yield from part.fallbacks(classes)
