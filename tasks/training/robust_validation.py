"""Early stopping by robust accuracy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.attacks import Attack
from tasks.attacks.pgd import PGD
from tasks.component import Component
from tasks.training.checkpoint import Progress


class RobustValidation(Component):
    """Chooses the best network by its robust accuracy on validation data (Rice et al. 2020).

    Adversarial training overfits: robust accuracy falls long before clean accuracy does, and the last network is far
    from the most robust one. Every validation is then also an attack, on images that are right without it.
    """

    kind: Literal["robust-validation"] = "robust-validation"
    attack: Attack = PGD(steps=10)
    """What the network must withstand."""
    epsilon: float | None = Field(default=None, gt=0)
    """Radius in input units; the largest of the objective unless given."""
    examples: int | None = Field(default=1000, ge=1)
    """At most so many validation examples are attacked, drawn evenly over the classes; all if `null`."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many validations without a better one; never unless given. Those before a network begins to learn
    count too, and against a large radius that takes a while."""

    def gives_up(self, progress: Progress) -> bool:
        """Whether the validations after the best one have been enough."""
        best = progress.best
        if self.patience is None or best is None:
            return False
        later = [entry for entry in progress.history if entry["step"] > best.step and "validation_accuracy" in entry]
        return len(later) >= self.patience
