"""What every attack promises, in every norm it offers: members that are added later are tested by being there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.ball import Norm, ball
from tasks.attacks.draws import Draws
from tasks.attacks.pgd import PGD
from tasks.attacks.transfer import Transfer
from tasks.component import members
from tasks.measuring.gauge import Gauge
from tests.tasks import digits

pytestmark = pytest.mark.usefixtures("one_thread")

RADIUS: dict[Norm, float] = {"linf": 0.1, "l2": 1.0, "l1": 6.0, "l0": 12.0}
SHORT: dict[str, Any] = {"steps": 8, "queries": 40, "targets": 2}
COUNT = 24


def attacks() -> Iterator[Any]:
    for kind, member in members(Attack).items():
        if kind == "autoattack" or kind.startswith("test-"):  # its parts are here; as a whole it takes minutes
            continue
        short = {**SHORT, "steps": 200, "searches": 5} if kind == "cw" else SHORT
        fields = {name: value for name, value in short.items() if name in member.model_fields}
        for norm in member.norms:
            if kind == "bpda":
                given = {"attack": PGD(norm=norm, steps=8), "through": ("conv1_relu",)} if norm in PGD.norms else None
            else:
                given = {"source": "standard"} if kind == "transfer" else {}
            if given is not None:
                yield pytest.param(member(norm=norm, **fields, **given), id=f"{kind}-{norm}")


def ready(attack: Attack) -> Attack:
    return attack.crafted_on({"standard": Gauge(digits.net("standard"))}) if isinstance(attack, Transfer) else attack


def problem() -> tuple[Gauge, torch.Tensor, torch.Tensor, Draws]:
    """The robust net, images it gets right and a few it gets wrong."""
    model = Gauge(digits.net("pgd"))
    images, labels = digits.pixels(400)
    with torch.no_grad():
        right = model(images).argmax(dim=1) == labels
    kept = torch.cat([right.nonzero()[: COUNT - 4], (~right).nonzero()[:4]]).squeeze(1)
    return model, images[kept], labels[kept], Draws(0, kept)


@pytest.mark.parametrize("attack", list(attacks()))
def test_an_attack_keeps_its_promises(attack: Attack) -> None:
    attack = ready(attack)
    model, images, labels, draws = problem()
    radius = RADIUS[attack.norm]
    given, state = images.clone(), torch.random.get_rng_state()
    perturbed = attack.perturb(model, images, labels, radius, draws)

    within = ball(attack.norm, images, radius)
    assert within.contains(perturbed).all()
    assert perturbed.min() >= 0
    assert perturbed.max() <= 1
    assert (perturbed.shape, perturbed.dtype, perturbed.requires_grad) == (images.shape, torch.float32, False)
    assert torch.equal(images, given)
    assert perturbed.data_ptr() != images.data_ptr()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())

    some = torch.tensor([20, 3, 8])  # one of them wrong without attack; three, which the gauge fills up
    again = attack.perturb(model, images[some], labels[some], radius, draws.at(some))
    assert torch.equal(again, perturbed[some])

    radii = torch.full((COUNT,), radius)
    radii[::2] = 0
    mixed = attack.perturb(model, images, labels, radii, draws)
    assert ball(attack.norm, images, radii).contains(mixed).all()
    assert torch.equal(mixed[1::2], perturbed[1::2])


@pytest.mark.parametrize("attack", list(attacks()))
def test_an_attack_beats_doing_nothing_on_the_standard_net(attack: Attack) -> None:
    images, labels, draws = digits.right(digits.net("standard"), 60)
    model: nn.Module = digits.net("standard")
    radius = {"linf": 0.3, "l2": 3.0, "l1": 30.0, "l0": 40.0}[attack.norm]
    perturbed = ready(attack).perturb(model, images, labels, radius, draws)
    broken = 1 - digits.accuracy(model, perturbed, labels)
    assert broken > (-1 if attack.label() == "random-noise" else 0.15)


@pytest.mark.parametrize("kind", sorted(set(members(Attack)) - {"transfer", "bpda"}))
def test_a_norm_that_is_not_offered_is_one_clear_line(kind: str) -> None:
    member = members(Attack)[kind]
    for norm in {"linf", "l2", "l1", "l0"} - set(member.norms):
        with pytest.raises(ValidationError, match=f"{kind} attacks in norm .*, not {norm}"):
            member(norm=norm)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.full((3, 1, 28, 28), 1.5)}, r"images must lie in \[0, 1\], found values from 1.5 to 1.5"),
        ({"images": torch.full((3, 1, 28, 28), torch.nan)}, r"images must lie in \[0, 1\]"),
        ({"images": torch.zeros(3, 28, 28)}, r"images must be \(N, C, H, W\) floats"),
        ({"images": torch.zeros(3, 1, 28, 28, dtype=torch.uint8)}, "floats"),
        ({"labels": torch.tensor([1, -1, 2])}, "labels must be classes from 0 up, found -1"),
        ({"labels": torch.tensor([1, 2])}, "labels, epsilon and draws must be 3"),
        ({"epsilon": -0.1}, "epsilon must be a finite number, 0 or larger, found -0.1"),
        ({"epsilon": torch.tensor([0.1, torch.nan, 0.1])}, "epsilon must be a finite number"),
    ],
    ids=str,
)
def test_arguments_are_checked_at_the_door(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "images": torch.zeros(3, 1, 28, 28),
        "labels": torch.tensor([1, 2, 3]),
        "epsilon": 0.1,
        "draws": Draws(0, torch.arange(3)),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        PGD().perturb(digits.net("standard"), **given)


def test_no_images_are_no_work() -> None:
    nothing = torch.zeros(0, 1, 28, 28)
    labels = torch.zeros(0, dtype=torch.int64)
    found = PGD().perturb(digits.net("standard"), nothing, labels, 0.1, Draws(0, labels))
    assert found.shape == nothing.shape
