"""Learning rates: golden values of every schedule."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn, optim

from tasks.component import members
from tasks.schedules import Schedule
from tasks.schedules.constant import Constant
from tasks.schedules.cosine import Cosine
from tasks.schedules.one_cycle import OneCycle
from tasks.schedules.step import Step


def test_the_family_has_its_members():
    assert set(members(Schedule)) >= {"constant", "step", "cosine", "one-cycle"}


def test_step_drops_at_the_published_epochs():
    published = Step(milestones=(0.5, 0.75), drop=0.1)
    factors = [published.factor(epoch * 391, 160 * 391) for epoch in (0, 79, 80, 119, 120, 159)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert published.factor(80 * 391 - 1, 160 * 391) == 1


@pytest.mark.parametrize(
    ("milestone", "epoch", "epochs"), [(0.3, 60, 200), (0.6, 120, 200), (0.8, 160, 200), (0.7, 7, 10)]
)
def test_a_decimal_milestone_falls_on_its_epoch_exactly(milestone: float, epoch: int, epochs: int):
    schedule = Step(milestones=(milestone,))
    assert schedule.factor(epoch * 391 - 1, epochs * 391) == 1
    assert schedule.factor(epoch * 391, epochs * 391) == 0.1


def test_cosine_agrees_with_pytorch():
    optimizer = optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.1)
    for step in range(20):
        assert Cosine(final=0.1).factor(step, 20) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("steps", [10, 37, 100])
def test_one_cycle_agrees_with_pytorch(steps: int):
    optimizer = optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    reference = optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=steps)
    for step in range(steps):
        assert OneCycle().factor(step, steps) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        if step < steps - 1:
            reference.step()


def test_warm_up_rises_evenly_and_never_from_zero():
    factors = [Constant(warmup=0.4).factor(step, 10) for step in range(6)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])


def test_warm_up_moves_no_milestone():
    plain, warmed = Step(milestones=(0.5,)), Step(milestones=(0.5,), warmup=0.2)
    assert [warmed.factor(step, 20) for step in range(4, 20)] == [plain.factor(step, 20) for step in range(4, 20)]
    assert warmed.factor(0, 20) == pytest.approx(1 / 5)


def test_cosine_falls_from_the_peak_that_warm_up_reaches():
    schedule = Cosine(warmup=0.2)
    assert schedule.factor(4, 20) == 1
    assert schedule.factor(12, 20) == pytest.approx(0.5)
    assert max(schedule.factor(step, 20) for step in range(20)) == 1


@pytest.mark.parametrize("kind", sorted(members(Schedule)))
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_every_factor_is_usable(kind: str, steps: int):
    schedule = members(Schedule)[kind]()
    factors = [schedule.factor(step, steps) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)


@pytest.mark.parametrize(
    "given",
    [
        {"kind": "step", "milestones": [0.75, 0.5]},
        {"kind": "step", "milestones": [80, 120]},
        {"kind": "step", "drop": 0},
        {"kind": "cosine", "warmup": 1},
        {"kind": "cosine", "final": -0.1},
        {"kind": "one-cycle", "warmup": 0},
    ],
)
def test_values_that_make_no_schedule_are_refused(given: dict):
    with pytest.raises(ValidationError):
        members(Schedule)[given["kind"]].model_validate(given)
