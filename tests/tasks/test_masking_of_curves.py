"""Who wins over whom is a sign of masked gradients only where gradients were followed well."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.bpda import BPDA, straight_through
from tasks.attacks.fgsm import FGSM
from tasks.attacks.fgsm_rs import FGSMRS
from tasks.attacks.pgd import PGD
from tasks.attacks.random_noise import RandomNoise
from tasks.attacks.square import Square
from tasks.measuring.masking import warnings
from tasks.measuring.outcomes import Outcomes, Threat

QUIET = dict.fromkeys(("probed", "zero", "random", "single", "clamped", "grey", "commonest"), 0)


def outcomes(*broken_by: int) -> Outcomes:
    """Examples of two classes that these attacks broke, -1 for those that stand, at the only epsilon."""
    count = len(broken_by)
    by = torch.tensor(broken_by)
    labels = torch.arange(count) % 2
    at = torch.where(by >= 0, torch.tensor(0.1), torch.inf)
    threat = Threat("linf", (0.1,), ("first", "second"))
    ones = torch.ones(count)
    return Outcomes(threat, torch.arange(count), labels, labels, ones, ones, at, by, at)


@pytest.mark.parametrize(
    ("first", "second", "flagged"),
    [
        (PGD(), Square(), True),
        (PGD(), FGSM(), True),
        (PGD(), FGSMRS(), True),
        (PGD(), BPDA(attack=FGSM(), through=("round",)), True),
        (PGD(), PGD(restarts=2), False),
        (FGSM(), Square(), False),
        (RandomNoise(), Square(), False),
        (FGSM(), PGD(), False),
    ],
    ids=lambda given: given.label() if isinstance(given, Attack) else str(given),
)
def test_only_a_win_over_many_steps_along_gradients_is_a_sign(first: Attack, second: Attack, flagged: bool) -> None:
    found = warnings(outcomes(0, 1, 1, -1), (first, second), 1, QUIET, [0, 0])
    assert bool(found) == flagged


def test_averaging_counts_inside_bpda_too() -> None:
    averaged = (BPDA(attack=PGD(eot=20), through=("round",)), PGD())
    random = {**QUIET, "probed": 10, "random": 10}
    assert warnings(outcomes(0, -1), averaged, 20, random, [0, 0]) == []
    assert len(warnings(outcomes(0, -1), averaged, 1, random, [0, 0])) == 1


def test_a_module_that_works_in_place_cannot_be_passed_straight_through() -> None:
    model = nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="changes its input in place"), straight_through(model, ("1",)):
        model(torch.rand(2, 1, 2, 2, requires_grad=True) * 2)
