"""What objectives that are put around another one share."""

from __future__ import annotations

from typing import Self

from torch import nn

from tasks.attacks.ball import Norm
from tasks.data import Signature
from tasks.objectives import Objective


class Around(Objective):
    """An objective that attacks and remembers as the one inside it does."""

    objective: Objective
    """The one inside."""

    @property
    def threat(self) -> tuple[Norm, float] | None:
        """That of the objective inside."""
        return self.objective.threat

    @property
    def second_order(self) -> bool:
        """As that inside is."""
        return self.objective.second_order

    @property
    def grows(self) -> bool:
        """As that inside does."""
        return self.objective.grows

    def against(self, epsilon: float) -> Self:
        """The same with another `epsilon` inside.

        Raises:
            ValueError: there is no such radius.
        """
        return type(self).model_validate({**dict(self), "objective": self.objective.against(epsilon)})

    def memory(self, data: Signature, examples: int, batch: int) -> nn.Module:
        """That of the objective inside."""
        return self.objective.memory(data, examples, batch)
