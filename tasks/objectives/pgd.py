"""Adversarial training."""

from __future__ import annotations

from typing import Literal

from tasks.objectives.adversarial import Iterated


class PGD(Iterated):
    """Adversarial training: cross-entropy on images that projected gradient descent has perturbed (Madry et al. 2018).

    The attack starts at a random point of the ball and sees the model in evaluation mode; the loss is taken on the
    perturbed images alone, in training mode.
    """

    kind: Literal["pgd"] = "pgd"

    def passes(self) -> int:
        """One for each step of the attack and one for the loss."""
        return self.steps + 1
