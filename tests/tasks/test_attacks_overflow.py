"""A model that overflows is not robust, and does not lead attacks out of their ball."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.apgd import APGD
from tasks.attacks.ball import ball
from tasks.attacks.ddn import DDN
from tasks.attacks.mi_fgsm import MIFGSM
from tasks.attacks.pgd import PGD
from tasks.measuring.robustness import decided
from tests.tasks import digits


class Overflowing(nn.Module):
    """A network whose logits overflow as soon as pixels leave the levels that they are stored in."""

    def __init__(self, largest: float) -> None:
        super().__init__()
        self.model = digits.net("standard")
        self.largest = largest

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        off = (images * 255 - (images * 255).round()).abs().flatten(1).amax(dim=1, keepdim=True) > 1e-3
        logits: torch.Tensor = self.model(images)
        return torch.where(off, logits * self.largest * 10, logits)


@pytest.mark.parametrize("attack", [PGD(norm="l2", steps=8), APGD(norm="l2", steps=8), MIFGSM(norm="l2"), DDN(steps=8)])
@pytest.mark.parametrize("largest", [1e38, torch.nan])
def test_gradients_that_are_not_numbers_do_not_carry_images_away(attack: Attack, largest: float) -> None:
    images, labels, draws = digits.right(digits.net("standard"), 24)
    found = attack.perturb(Overflowing(largest), images, labels, 1.0, draws)
    assert ball("l2", images, 1.0).contains(found).all()


def test_no_answer_is_a_mistake_whatever_the_label() -> None:
    class Silent(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(images), 10)
            logits[0] = torch.nan
            logits[1, 3] = torch.nan
            return logits

    model: Any = Silent()
    for votes in (1, 3):
        assert decided(model, torch.zeros(4, 1, 8, 8), votes).tolist() == [-1, -1, 0, 0]
