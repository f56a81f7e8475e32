"""Networks that hide their gradients are flagged, and fall to the attack that sees through them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal

import pytest
import torch
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.bpda import BPDA, straight_through
from tasks.attacks.fgsm import FGSM
from tasks.attacks.pgd import PGD
from tasks.attacks.square import Square
from tasks.attacks.transfer import Transfer
from tasks.data import Signature
from tasks.measuring.evaluate import Evaluate
from tasks.models.network import Network
from tasks.models.small_cnn import SmallCNN
from tasks.task import Alone
from tests.tasks import digits

BLACK, WHITE = ((value - 0.1307) / 0.3082 for value in (0.1, 0.9))


class Clamp(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.clamp(BLACK, WHITE)


class Round(nn.Module):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return (features * 4).round() / 4


class Noise(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + torch.randn_like(images)


class Altered(SmallCNN):
    """The small network with a module that hides its gradient, before or after the first convolution."""

    kind: Literal["test-altered"] = "test-altered"  # type: ignore[assignment]
    by: Literal["clamp", "round", "noise"]

    def build(self, data: Signature) -> nn.Module:
        net = super().build(data)
        layers = list(net.body.named_children())
        place, module = {"clamp": (0, Clamp()), "round": (1, Round()), "noise": (0, Noise())}[self.by]
        layers.insert(place, (self.by, module))
        body = nn.Sequential(OrderedDict(layers))
        return Network(data, body, body.output)


def evaluate(by: Any, *attacks: Attack, net: digits.Name = "standard", epsilon: float = 0.2, **fields: Any) -> Any:
    task = Evaluate(
        data=digits.DATA,
        architecture=Altered(by=by) if by else SmallCNN(),
        attacks=attacks,
        epsilons=(epsilon,),
        examples=100,
        **fields,
    )
    inputs = {name: digits.step_of("standard") for name in fields.get("surrogates", ())}
    metrics = task.run(Alone(), trained=digits.step_of(net), **inputs).metrics
    return metrics["robust"][0]["accuracy"], metrics["warnings"]


@pytest.mark.parametrize("net", ["standard", "fgsm-rs", "pgd"])
def test_honest_networks_are_not_flagged(net: digits.Name) -> None:
    _, warnings = evaluate(None, PGD(), net=net, epsilon=digits.EPSILON[net])
    assert warnings == []


def test_a_network_that_clamps_its_inputs_is_flagged_and_falls_through_the_clamp() -> None:
    naive, warnings = evaluate("clamp", PGD(steps=40))
    assert any("clamps or saturates its inputs" in warning for warning in warnings)
    adaptive, _ = evaluate("clamp", BPDA(attack=PGD(steps=40), through=("clamp",)))
    assert naive > 0.5
    assert adaptive < 0.1


def test_a_network_that_rounds_its_features_is_flagged_and_falls_through_the_rounding() -> None:
    naive, warnings = evaluate("round", PGD(steps=40))
    assert any("gradient is zero" in warning for warning in warnings)
    adaptive, _ = evaluate("round", BPDA(attack=PGD(steps=40), through=("round",)))
    assert naive > 0.9
    assert adaptive < 0.1


def test_a_black_box_that_wins_over_gradients_is_reported() -> None:
    _, warnings = evaluate("round", PGD(), Square(queries=200))
    assert any("square broke" in warning and "gradients may be masked" in warning for warning in warnings)


def test_images_of_the_twin_that_does_not_round_break_the_one_that_does() -> None:
    naive, _ = evaluate("round", PGD())
    twin = Transfer(source="twin")
    transferred, warnings = evaluate("round", PGD(), twin, surrogates={"twin": SmallCNN()})
    assert transferred < naive - 0.5
    assert any("transfer-twin broke" in warning for warning in warnings)


def test_the_cost_of_a_transfer_includes_the_other_network() -> None:
    task = Evaluate(
        data=digits.DATA,
        architecture=SmallCNN(),
        attacks=(Transfer(source="twin", steps=3),),
        epsilons=(1e-7,),
        examples=100,
        surrogates={"twin": SmallCNN()},
    )
    metrics = task.run(Alone(), trained=digits.step_of("standard"), twin=digits.step_of("standard")).metrics
    assert metrics["costs"]["transfer-twin"] == metrics["correct"] * (3 + 3 + 1)


def test_a_network_that_draws_random_numbers_is_flagged_and_falls_to_averaged_gradients() -> None:
    naive, warnings = evaluate("noise", PGD(), net="fgsm-rs")
    assert any("answers differently each time" in warning for warning in warnings)
    adaptive, warnings = evaluate("noise", PGD(eot=20), net="fgsm-rs", votes=20)
    assert not any("answers differently" in warning for warning in warnings)
    assert adaptive < naive - 0.15


def test_a_random_network_is_measured_to_the_same_outcome_twice_and_the_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    first = evaluate("noise", PGD(steps=5), net="fgsm-rs", votes=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert evaluate("noise", PGD(steps=5), net="fgsm-rs", votes=3) == first


def test_one_step_that_wins_over_twenty_is_reported() -> None:
    class Blinded(PGD):
        kind: Literal["test-blinded"] = "test-blinded"  # type: ignore[assignment]

    # Its many steps are too short to matter, which is how masked gradients look.
    _, warnings = evaluate(None, Blinded(steps=1, relative_step=1e-6), FGSM())
    assert any("fgsm broke" in warning for warning in warnings)


def test_straight_through_changes_no_output_and_lets_the_gradient_pass() -> None:
    model = nn.Sequential(OrderedDict(flatten=nn.Flatten(), round=Round(), output=nn.Linear(4, 2)))
    images = torch.rand(3, 1, 2, 2, requires_grad=True)
    outside = model(images)
    (blocked,) = torch.autograd.grad(outside[:, 0].sum(), images)
    with straight_through(model, ("round",)):
        inside = model(images)
        (passed,) = torch.autograd.grad(inside[:, 0].sum(), images)
    assert torch.equal(inside, outside)
    assert not blocked.any()
    assert torch.allclose(passed.flatten(1), model.output.weight[0].expand(3, 4))
    (again,) = torch.autograd.grad(model(images)[:, 0].sum(), images)
    assert not again.any()


def test_a_module_that_is_not_there_is_one_clear_line() -> None:
    with pytest.raises(ValueError, match=r"the network has no module 'clip'; .*it has .*conv1"):
        evaluate("clamp", BPDA(attack=PGD(), through=("clip",)))


def test_a_transfer_from_an_unknown_network_is_one_clear_line() -> None:
    with pytest.raises(ValueError, match="no surrogate has this name; given: twin"):
        evaluate(None, Transfer(source="dense"), surrogates={"twin": SmallCNN()})
