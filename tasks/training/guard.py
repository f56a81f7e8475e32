"""The detector of catastrophic overfitting."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.pgd import PGD
from tasks.component import Component
from tasks.models.weights import restore, weights_to_bytes
from tasks.training.checkpoint import Good, Progress


class Guard(Component):
    """Ends a training at catastrophic overfitting and goes back (Wong et al. 2020; Andriushchenko & Flammarion 2020).

    A network that trains against a single step can learn, within a few steps, to withstand that one and nothing else:
    its accuracy under a stronger attack falls to zero while the training loss goes on falling. So now and then some
    training images are attacked in earnest. What is gone back to is the best look, the latest of equals.

    It looks at every so many steps of the schedule, at the last one, and at the weights that a training was given to
    start from. A fall is one from the best look so far: while a budget grows, what rises from nothing has not fallen.
    A network that never withstood more than `drop` is not seen to collapse, and there would be nothing to go back to.
    """

    kind: Literal["guard"] = "guard"
    every: int = Field(default=100, ge=1)
    """Steps between two looks, counted over the whole schedule."""
    drop: float = Field(default=0.2, gt=0, lt=1)
    """How far accuracy under attack may fall below that of the best look."""
    attack: Attack = PGD(steps=10)
    """What the network must withstand: stronger than what it trains against."""
    epsilon: float | None = Field(default=None, gt=0)
    """Radius in input units; the largest of the objective unless given."""
    examples: int = Field(default=256, ge=1)
    """At most so many training examples are attacked, without augmentation, drawn evenly over the classes."""

    def is_due(self, step: int, stop: int) -> bool:
        """Whether to look after so many steps of a training that ends at `stop`."""
        return step % self.every == 0 or step == stop

    def finds_collapse(self, accuracy: float, progress: Progress, model: nn.Module) -> bool:
        """Compares a look with the best one, and keeps the network if none was better."""
        good = progress.good
        if good is None or accuracy >= good.accuracy:
            progress.good = Good(accuracy, progress.step, weights_to_bytes(model), progress.best)
            return False
        return good.accuracy - accuracy > self.drop

    def roll_back(self, accuracy: float, progress: Progress, model: nn.Module) -> None:
        """Ends the training with the network of the best look, in place; the best by validation is not from later on.

        Entries of the history after that look stay there, marked.
        """
        good = progress.good
        assert good is not None  # a collapse is one from a good look
        progress.stopped = {
            "why": "catastrophic-overfitting",
            "detected_at": progress.step,
            "rolled_back_to": good.step,
            "before": good.accuracy,
            "after": accuracy,
        }
        progress.history = [
            {**entry, "rolled_back": True} if entry["step"] > good.step else entry for entry in progress.history
        ]
        progress.step, progress.best = good.step, good.best
        restore(model, good.weights)
