"""The budget that every example has for itself."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from tasks.budgets import Budget
from tasks.moment import Moment


class PerExample(Budget):
    """A radius for each example that grows when it withstands and shrinks when it falls (Balaji et al. 2019).

    What instance adaptive adversarial training finds with three attacks, at its radius and a little above and below,
    is read here from the one attack that is trained on; the paper also averages the radius over visits, and begins with
    a common one. Customised adversarial training (Cheng et al. 2020) starts from zero as here, but never shrinks a
    radius, and smooths labels with it. Both measure growth in input units; here it is in shares of the largest radius.
    """

    grows: ClassVar[bool] = True

    kind: Literal["per-example"] = "per-example"
    first: float = Field(default=0.0, ge=0, le=1)
    """The radius of every example's first attack; like all that follow, as a share of the largest."""
    growth: float = Field(default=0.1, gt=0, le=1)
    """What is added when the example was classified right under attack. It is visited once an epoch."""
    shrinkage: float = Field(default=0.1, ge=0, le=1)
    """What is taken away when it was not."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """No radius shrinks below this."""

    def memory(self, examples: int) -> nn.Module:
        """Buffer `shares` (examples,) float32, radii as shares of the largest, by place in the training split."""
        memory = nn.Module()
        memory.register_buffer("shares", torch.full((examples,), self.first))
        return memory

    def radii(self, epsilon: float, count: int, moment: Moment, memory: nn.Module) -> torch.Tensor:
        """The own radius of each image, (N,)."""
        return epsilon * memory.get_buffer("shares")[_rows(moment)]

    def learn(self, logits: torch.Tensor, labels: torch.Tensor, moment: Moment, memory: nn.Module) -> None:
        """Grows the radii of the images that are classified right and shrinks those of the others."""
        shares, rows = memory.get_buffer("shares"), _rows(moment)
        withstood = logits.argmax(1) == labels
        moved = shares[rows] + torch.where(withstood, self.growth, -self.shrinkage)
        shares[rows] = moved.clamp_(self.floor, 1)

    @model_validator(mode="after")
    def _start_above_the_floor(self) -> Self:
        if self.first < self.floor:
            raise ValueError(f"first is {self.first}, below floor, which is {self.floor}")
        return self


def _rows(moment: Moment) -> torch.Tensor:
    assert moment.rows is not None  # every training names them
    return moment.rows
