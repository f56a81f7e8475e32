"""Attacks stay in their ball, find the optimum where it is known, and leave the model as they found it."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.ball import Norm, ball
from tasks.attacks.draws import Draws
from tasks.attacks.fgsm import FGSM
from tasks.attacks.pgd import PGD
from tasks.objectives.standard import Standard
from tasks.seeds import generator
from tests.tasks.attack_toys import EPSILON, accuracy, pixels, robust_net, standard_net, trained

ATTACKS = [FGSM(), FGSM(norm="l2"), PGD(restarts=2), PGD(norm="l2", restarts=2), PGD(relative_step=3.0, steps=3)]


def draws(images: torch.Tensor, seed: int = 0) -> Draws:
    return Draws(seed, torch.arange(len(images)))


class Linear(nn.Module):
    """Two classes, logits 0 and (x - 0.5) . w + bias: an attack's best move is known in closed form."""

    def __init__(self, weight: torch.Tensor, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = bias
        self.calls: list[int] = []

    def margin(self, images: torch.Tensor) -> torch.Tensor:
        return (images - 0.5).flatten(1) @ self.weight + self.bias

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(images))
        margin = self.margin(images)
        return torch.stack([torch.zeros_like(margin), margin], dim=1)


def linear_problem(norm: str, epsilon: float) -> tuple[Linear, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A linear model, images far from 0 and 1, their labels, and by how much an optimal attack can lower the margin."""
    draw = generator("linear", norm)
    model = Linear(torch.randn(16, generator=draw))
    images = 0.5 + 0.2 * (torch.rand(200, 1, 4, 4, generator=draw) - 0.5)
    labels = (model.margin(images) > 0).long().detach()
    dual = model.weight.detach().abs().sum() if norm == "linf" else model.weight.detach().norm()
    return model, images, labels, epsilon * dual


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
@pytest.mark.parametrize("epsilon", [0.003, 0.1, 0.9])
def test_adversarial_images_stay_in_the_ball_and_in_the_range(attack: Attack, epsilon: float) -> None:
    images, labels = pixels()
    images[:50] = images[:50].round()  # zeros and ones: the ball is cut on every side
    perturbed = attack.perturb(robust_net(), images, labels, epsilon, draws(images))
    change = (perturbed - images).flatten(1)
    length = change.abs().amax(1) if attack.norm == "linf" else change.norm(dim=1)
    assert length.max() <= epsilon + 1e-6
    assert length.max() > 0.9 * epsilon
    assert perturbed.min() >= 0
    assert perturbed.max() <= 1
    assert perturbed.shape == images.shape
    assert not perturbed.requires_grad


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_on_a_linear_model_attacks_break_exactly_what_can_be_broken(norm: str, attack: str) -> None:
    epsilon = {"linf": 0.01, "l2": 0.05}[norm]
    model, images, labels, reach = linear_problem(norm, epsilon)
    chosen = {"fgsm": FGSM(norm=norm), "pgd": PGD(norm=norm, steps=40, relative_step=0.25)}[attack]
    perturbed = chosen.perturb(model, images, labels, epsilon, draws(images))
    breakable = model.margin(images).abs() <= reach
    decided = (model.margin(images).abs() - reach).abs() > 1e-5  # not a matter of rounding
    broken = (model.margin(perturbed) > 0).long() != labels
    assert torch.equal(broken[decided], breakable[decided])
    assert 20 < int(broken.sum()) < 180


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_model_the_strongest_attempt_is_the_closed_form_optimum(norm: str) -> None:
    epsilon = 0.05
    model, images, _, reach = linear_problem(norm, epsilon)
    model.bias = 4.0  # nothing can be broken
    perturbed = PGD(norm=norm, steps=40, relative_step=0.25).perturb(
        model, images, torch.ones(200).long(), epsilon, draws(images)
    )
    assert (model.margin(perturbed) > 0).all()
    lowered = model.margin(images) - model.margin(perturbed)
    assert torch.allclose(lowered, reach.expand(200), rtol=1e-3)
    weight = model.weight.detach().view(1, 1, 4, 4)
    best = images - epsilon * (weight.sign() if norm == "linf" else weight / weight.norm())
    assert (perturbed - best).flatten(1).norm(dim=1).max() < 0.1 * epsilon


def test_more_steps_and_restarts_never_leave_more_standing() -> None:
    images, labels = pixels()
    net = trained(Standard(), epochs=2)
    epsilon = 0.045
    standing = [
        accuracy(net, attack.perturb(net, images, labels, epsilon, draws(images)), labels)
        for attack in (FGSM(), PGD(), PGD(restarts=4))
    ]
    assert standing == sorted(standing, reverse=True)
    assert 0.02 < standing[-1] < 0.98


def test_the_standard_net_falls_where_the_adversarially_trained_one_stands() -> None:
    images, labels = pixels()
    attack = PGD(restarts=2)
    assert accuracy(standard_net(), images, labels) > 0.97
    assert (
        accuracy(standard_net(), attack.perturb(standard_net(), images, labels, EPSILON, draws(images)), labels) < 0.02
    )
    assert accuracy(robust_net(), attack.perturb(robust_net(), images, labels, EPSILON, draws(images)), labels) > 0.85


def test_random_noise_of_the_same_size_is_harmless() -> None:
    images, labels = pixels()
    noisy = ball("linf", images, EPSILON).random(draws(images))
    assert accuracy(standard_net(), noisy, labels) > 0.97
    assert accuracy(robust_net(), noisy, labels) > 0.9


def test_random_starts_fill_the_ball() -> None:
    images = torch.full((500, 1, 4, 4), 0.5)
    linf = ball("linf", images, 0.2).random(draws(images)) - images
    assert linf.abs().max() > 0.199
    assert linf.std() == pytest.approx(0.2 / 3**0.5, rel=0.02)
    lengths = (ball("l2", images, 0.2).random(draws(images)) - images).flatten(1).norm(dim=1)
    assert (lengths / 0.2).pow(16).mean() == pytest.approx(0.5, abs=0.05)  # uniform in volume


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_starts_lie_on_the_surface(norm: Norm) -> None:
    images = torch.full((400, 1, 8, 8), 0.5)
    epsilon = torch.linspace(0.05, 0.4, 400)
    own = draws(images)
    within = ball(norm, images, epsilon)
    start = within.surface(own, "start")
    assert torch.allclose(within.distances(start), epsilon, atol=1e-5)
    assert not torch.equal(start, within.surface(own, "other"))
    change = (start - images).flatten(1) / epsilon.unsqueeze(1)
    assert change.mean(dim=0).abs().max() < {"linf": 0.15, "l2": 0.04, "l1": 0.1}[norm]


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_the_model_and_the_global_generator_are_left_as_found(attack: Attack) -> None:
    images, labels = pixels()
    net = trained(Standard(), epochs=1)
    for index, parameter in enumerate(net.parameters()):
        parameter.requires_grad_(index % 2 == 0)
        parameter.grad = torch.full_like(parameter, 7.0) if index % 2 == 0 else None
    state = {name: value.clone() for name, value in net.state_dict().items()}
    before = torch.random.get_rng_state()
    attack.perturb(net, images, labels, EPSILON, draws(images))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(module.training for module in net.modules())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    for index, parameter in enumerate(net.parameters()):
        assert parameter.requires_grad == (index % 2 == 0)
        assert parameter.grad is None or bool((parameter.grad == 7).all())


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_images_given_to_an_attack_are_not_changed(attack: Attack) -> None:
    images, labels = pixels()
    copy = images.clone()
    attack.perturb(standard_net(), images, labels, EPSILON, draws(images))
    assert torch.equal(images, copy)
    assert not images.requires_grad


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_equal_seeds_give_equal_bytes_and_others_do_not(norm: str) -> None:
    images, labels = pixels()
    attack = PGD(norm=norm, steps=3)
    first, again, other = (
        attack.perturb(robust_net(), images, labels, EPSILON, draws(images, seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_examples_start_does_not_depend_on_which_others_have_fallen() -> None:
    model, images, labels, _ = linear_problem("linf", 0.01)
    attack = PGD(steps=1, relative_step=1e-6, restarts=2)  # what comes back is as good as the start
    mixed = labels.clone()
    mixed[::2] = 1 - mixed[::2]  # half are broken before the first step
    all_standing = attack.perturb(model, images, labels, 0.001, draws(images))
    half_standing = attack.perturb(model, images, mixed, 0.001, draws(images))
    unbroken = (model.margin(all_standing) > 0).long() == labels
    assert unbroken[1::2].sum() > 90
    assert torch.allclose(all_standing[1::2][unbroken[1::2]], half_standing[1::2][unbroken[1::2]], atol=1e-6)


def test_what_has_fallen_is_not_attacked_again() -> None:
    model, images, labels, _ = linear_problem("linf", 0.01)
    labels = labels.clone()
    labels[:150] = 1 - labels[:150]
    model.bias, epsilon = 0.0, 1e-6
    PGD(steps=5, restarts=3).perturb(model, images, labels, epsilon, draws(images))
    assert model.calls[0] == 200
    assert set(model.calls[1:]) == {50}
    assert len(model.calls) == 3 * 6


def test_the_last_iterate_is_tested() -> None:
    model, images, labels, _ = linear_problem("linf", 0.05)
    broken = [
        int(
            (
                model.margin(PGD(steps=1, relative_step=2.0).perturb(model, images, labels, 0.05, draws(images))) > 0
            ).sum()
        )
        for _ in range(1)
    ]
    optimal = FGSM().perturb(model, images, labels, 0.05, draws(images))
    assert broken == [int((model.margin(optimal) > 0).sum())]


def test_of_attempts_that_all_fail_the_strongest_comes_back() -> None:
    losses: list[torch.Tensor] = []

    class Peak(nn.Module):
        """Always right, least sure at grey: long steps go past it and back."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            margin = 0.5 + 9 * (images - 0.5).flatten(1).square().sum(1)
            logits = torch.stack([torch.zeros_like(margin), margin], dim=1)
            losses.append(torch.nn.functional.softplus(-margin).detach())
            return logits

    images = 0.5 + 0.1 * torch.rand((30, 1, 4, 4), generator=generator("peak"))
    labels = torch.ones(30, dtype=torch.int64)
    perturbed = PGD(steps=6, relative_step=0.7, restarts=2).perturb(Peak(), images, labels, 0.1, draws(images))
    tried = torch.stack(losses)
    Peak()(perturbed)
    assert torch.allclose(losses[-1], tried.amax(0), atol=1e-6)
    assert (tried.amax(0) > tried[-1] + 1e-3).any()


def test_a_vanishing_gradient_still_gives_a_direction() -> None:
    images = torch.full((4, 1, 4, 4), 0.5)
    gradient = torch.full_like(images, 1e-30)  # its square is zero in float32
    for norm in ("linf", "l2"):
        moved = images.clone()
        ball(norm, images, 0.1).step_(moved, gradient, 0.1)
        assert torch.allclose(moved - images, torch.full_like(images, 0.1 if norm == "linf" else 0.1 / 4), atol=1e-6)
        ball(norm, images, 0.1).step_(moved, torch.zeros_like(images), 0.1)
        assert torch.isfinite(moved).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_membership_is_told_to_a_millionth(norm: str) -> None:
    images = torch.full((3, 1, 2, 2), 0.5)
    images[2] = 1.0
    change = torch.zeros_like(images)
    change[:, 0, 0, 0] = torch.tensor([0.1, 0.10001, 0.05])
    assert ball(norm, images, 0.1).contains(images + change).tolist() == [True, False, False]
    assert not ball(norm, images, 0.1).contains(torch.full_like(images, torch.nan)).any()


@pytest.mark.parametrize(
    "fields", [{"steps": 0}, {"restarts": 0}, {"relative_step": 0.0}, {"norm": "l7"}, {"epsilon": 0.1}], ids=str
)
def test_values_out_of_bounds_do_not_validate(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PGD.model_validate(fields)
