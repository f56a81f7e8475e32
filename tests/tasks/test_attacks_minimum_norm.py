"""Minimum-norm attacks find the nearest mistake where it is known, and near ones on a trained network."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.ball import L0Ball, Norm, ball
from tasks.attacks.cw import CarliniWagner
from tasks.attacks.ddn import DDN
from tasks.attacks.deepfool import DeepFool
from tasks.attacks.draws import Draws
from tasks.attacks.fmn import FMN
from tasks.attacks.minimum_norm import MinimumNorm
from tasks.attacks.pgd import PGD
from tasks.attacks.sigma_zero import SigmaZero
from tasks.seeds import generator
from tests.tasks import digits

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT_CW = CarliniWagner(searches=4, steps=80, learning_rate=0.1, first_weight=1.0)
QUICK: list[MinimumNorm] = [
    DDN(steps=20),
    DDN(steps=20, levels=256),
    FMN(norm="linf", steps=20),
    FMN(norm="l2", steps=20),
    FMN(norm="l1", steps=20),
    FMN(norm="l0", steps=40),
    SigmaZero(steps=20),
    DeepFool(norm="l2"),
    DeepFool(norm="linf"),
    CarliniWagner(searches=2, steps=20, learning_rate=0.1, first_weight=1.0),
]
each_quick = pytest.mark.parametrize("attack", QUICK, ids=str)


@cache
def problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor, Draws]:
    """The standard network and about 100 digits that it gets right."""
    net = digits.net("standard")
    return net, *digits.right(net, 105)


@cache
def small_problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor, Draws]:
    """The first 40 of them."""
    net, images, labels, draws = problem()
    return net, images[:40], labels[:40], draws.at(torch.arange(40))


@cache
def distances(attack: MinimumNorm) -> torch.Tensor:
    """How far away the attack found a mistake for each of those digits, inf where it found none."""
    net, images, labels, draws = problem()
    found, which = attack.nearest(net, images, labels, draws)
    assert torch.equal(which, net(found).argmax(dim=1) != labels)
    assert 0 <= found.min() <= found.max() <= 1
    return torch.where(which, ball(attack.norm, images, 0.0).distances(found), torch.inf)


class Linear(nn.Module):
    """Two classes, logits 0 and (x - 0.5) . w plus a bias: the nearest mistake is known in every norm."""

    def __init__(self, weight: torch.Tensor, bias: float) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.seen = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        margin = (images - 0.5).flatten(1) @ self.weight + self.bias
        return torch.stack([torch.zeros_like(margin), margin], dim=1)


class Constant(nn.Module):
    """Always class 1, whatever the image: gradients exist and are zero."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 0 * images.flatten(1)[:, :3] + torch.tensor([0.0, 9.0, 1.0])


def linear_problem(bias: float) -> tuple[Linear, torch.Tensor, torch.Tensor, torch.Tensor, Draws]:
    """The model, 200 images far from 0 and 1, their labels, and the margins: `bias` or so."""
    draw = generator("linear")
    model = Linear(torch.randn(16, generator=draw), bias)
    images = 0.5 + 0.1 * (torch.rand(200, 1, 4, 4, generator=draw) - 0.5)
    margins = model(images)[:, 1]
    return model, images, (margins > 0).long(), margins.abs(), Draws(0, torch.arange(200))


@pytest.mark.parametrize(
    ("attack", "dual", "slack"),
    [
        (DDN(), 2, 0.02),
        (FMN(norm="l2"), 2, 0.001),
        (FMN(norm="linf"), 1, 0.001),
        (FMN(norm="l1"), torch.inf, 0.001),
        (DeepFool(norm="l2"), 2, 0.04),
        (DeepFool(norm="linf"), 1, 0.06),
        (CarliniWagner(searches=6, steps=250, learning_rate=0.03, first_weight=0.1), 2, 0.06),
    ],
    ids=str,
)
def test_on_a_linear_model_the_nearest_mistake_is_found(attack: MinimumNorm, dual: float, slack: float) -> None:
    model, images, labels, margins, draws = linear_problem(bias=0.5)
    found, which = attack.nearest(model, images, labels, draws)
    assert which.all()
    assert (model(found).argmax(dim=1) != labels).all()
    true = margins / model.weight.norm(p=dual)
    length = ball(attack.norm, images, 0.0).distances(found)
    assert (length > true - 1e-6).all()  # nearer is impossible
    assert (length <= (1 + slack) * true).all()


@pytest.mark.parametrize("attack", [FMN(norm="l0"), SigmaZero(steps=200)], ids=str)
def test_on_a_linear_model_the_fewest_values_are_changed(attack: MinimumNorm) -> None:
    model, images, labels, margins, draws = linear_problem(bias=2.0)
    found, which = attack.nearest(model, images, labels, draws)
    flat = images.flatten(1)
    up = (1 - 2.0 * labels).unsqueeze(1) * model.weight > 0
    gains = (torch.where(up, 1 - flat, flat) * model.weight.abs()).sort(dim=1, descending=True).values.cumsum(dim=1)
    true = (gains < margins.unsqueeze(1)).sum(dim=1) + 1
    changed = (found != images).flatten(1).sum(dim=1)
    assert which.all()
    assert true.float().mean() > 2
    assert (changed >= true).all()
    assert (changed <= true + 1).all()
    assert (changed == true).float().mean() > 0.8


def test_ddn_is_as_near_as_carlini_and_wagner() -> None:
    net, images, labels, draws = small_problem()
    found, which = SHORT_CW.nearest(net, images, labels, draws)
    record = ball("l2", images, 0.0).distances(found)
    near = distances(DDN())
    assert which.all()
    assert near.isfinite().all()
    assert near[:40].median() <= 1.01 * record.median()
    assert record.median() < 1.1 * near[:40].median()  # the comparison is with a working one


@pytest.mark.slow
def test_ddn_is_as_near_as_a_long_run_of_carlini_and_wagner() -> None:
    record = distances(CarliniWagner(steps=1000))
    assert record.isfinite().all()
    assert distances(DDN()).median() <= 1.01 * record.median()


def test_fmn_in_l2_breaks_all_and_is_as_near_as_ddn() -> None:
    found = distances(FMN(norm="l2"))
    assert found.isfinite().all()
    assert abs(found.median() / distances(DDN()).median() - 1) < 0.03


def test_fmn_in_linf_finds_the_smallest_epsilon_that_pgd_needs() -> None:
    net, images, labels, draws = problem()
    attack = PGD(steps=20)
    low, high = torch.zeros(len(images)), torch.full((len(images),), 0.5)
    for _ in range(8):
        middle = (low + high) / 2
        broken = net(attack.perturb(net, images, labels, middle, draws)).argmax(dim=1) != labels
        low, high = torch.where(broken, low, middle), torch.where(broken, middle, high)
    found = distances(FMN(norm="linf"))
    assert found.isfinite().all()
    assert abs(found.median() / high.median() - 1) < 0.03
    assert ((found / high - 1).abs() < 0.15).float().mean() > 0.95


def test_sigma_zero_needs_few_pixels_and_fmn_hardly_more() -> None:
    fewest = distances(SigmaZero(steps=100))
    assert fewest.isfinite().all()
    assert fewest.median() <= 15
    assert fewest.min() >= 1
    assert distances(FMN(norm="l0")).median() <= fewest.median() + 2
    # Fewer than the nearest images of another norm could ever claim.
    assert fewest.median() < 0.1 * 784


def test_deepfool_is_fast_and_farther_away_than_ddn() -> None:
    far, near = distances(DeepFool()), distances(DDN())
    assert far.isfinite().all()
    assert near.median() < far.median() < 1.5 * near.median()
    assert (far >= near - 1e-3).float().mean() > 0.97
    assert distances(FMN(norm="linf")).median() < distances(DeepFool(norm="linf")).median()


def test_an_example_that_is_broken_or_stopped_improving_costs_nothing_more() -> None:
    model, images, labels, _, draws = linear_problem(bias=0.5)
    model.seen = 0
    DeepFool().nearest(model, images, labels, draws)
    assert model.seen <= 3 * len(images)  # of 51
    model.seen = 0
    CarliniWagner(searches=3, steps=1000, learning_rate=0.1, first_weight=1.0).nearest(model, images, labels, draws)
    assert model.seen < 0.7 * 3 * 1000 * len(images)


@each_quick
def test_what_comes_back_is_detached_in_range_and_breaks_what_it_says(attack: MinimumNorm) -> None:
    net, images, labels, draws = small_problem()
    before, state = images.clone(), torch.get_rng_state()
    found, which = attack.nearest(net, images, labels, draws)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, before)
    assert not images.requires_grad
    assert not found.requires_grad
    assert not net.training
    assert found.shape == images.shape
    assert 0 <= found.min() <= found.max() <= 1
    assert torch.equal(which, net(found).argmax(dim=1) != labels)
    assert which.float().mean() > 0.6


@each_quick
def test_an_outcome_does_not_depend_on_the_company(attack: MinimumNorm) -> None:
    net, images, labels, draws = small_problem()
    some = torch.tensor([34, 3, 27, 12, 18, 9, 30])
    whole, which = attack.nearest(net, images, labels, draws)
    part, also = attack.nearest(net, images[some], labels[some], draws.at(some))
    assert torch.equal(part, whole[some])
    assert torch.equal(also, which[some])


@each_quick
def test_an_image_that_is_misclassified_already_is_its_own_nearest_mistake(attack: MinimumNorm) -> None:
    net, images, labels, draws = small_problem()
    images, labels, draws = images[:20], labels[:20].clone(), draws.at(torch.arange(20))
    labels[::2] = (labels[::2] + 1) % 10
    found, which = attack.nearest(net, images, labels, draws)
    assert which[::2].all()
    assert torch.equal(found[::2], images[::2])
    assert not (found[1::2] == images[1::2]).flatten(1).all(dim=1).any()


@each_quick
def test_zero_gradients_find_nothing_and_yield_numbers(attack: MinimumNorm) -> None:
    images = problem()[1][:6]
    model, labels, draws = Constant(), torch.ones(6).long(), Draws(0, torch.arange(6))
    found, which = attack.nearest(model, images, labels, draws)
    assert not which.any()
    assert 0 <= found.min() <= found.max() <= 1  # NaN is not
    perturbed = attack.perturb(model, images, labels, 0.5, draws)
    assert ball(attack.norm, images, 0.5).contains(perturbed).all()


@each_quick
def test_what_cannot_be_broken_comes_back_as_an_attempt(attack: MinimumNorm) -> None:
    model, images, labels, margins, draws = linear_problem(bias=10.0)
    found, which = attack.nearest(model, images, labels, draws)
    assert not which.any()
    assert (model(found)[:, 1] < margins - 0.1).all()
    perturbed = attack.perturb(model, images, labels, 1.0, draws)
    assert ball(attack.norm, images, 1.0).contains(perturbed).all()
    assert model(perturbed)[:, 1].mean() < margins.mean() - 0.05


@each_quick
def test_perturbed_images_stay_in_their_ball_and_break_what_is_near_enough(attack: MinimumNorm) -> None:
    net, images, labels, draws = small_problem()
    found, which = attack.nearest(net, images, labels, draws)
    length = torch.where(which, ball(attack.norm, images, 0.0).distances(found), torch.inf)
    middle = float(length.median())
    radii = torch.linspace(0.5, 1.5, len(images)) * middle
    perturbed = attack.perturb(net, images, labels, radii, draws)
    assert ball(attack.norm, images, radii).contains(perturbed).all()
    broken = net(perturbed).argmax(dim=1) != labels
    assert broken[length <= radii].all()
    assert 0.2 < broken.float().mean() < 0.9
    few = torch.arange(4)
    assert torch.equal(attack.perturb(net, images[few], labels[few], 0.0, draws.at(few)), images[few])


def test_ddn_can_keep_to_values_of_8_bits() -> None:
    net, images, labels, draws = problem()
    found, which = DDN(levels=256).nearest(net, images, labels, draws)
    assert which.all()
    assert torch.equal((found * 255).round() / 255, found)
    free, _ = DDN(steps=5).nearest(net, images, labels, draws)
    assert not torch.equal((free * 255).round() / 255, free)
    length = ball("l2", images, 0.0).distances(found)
    assert length.median() < 1.02 * distances(DDN()).median()  # rounding costs little


def test_the_l0_ball_keeps_the_largest_changes_and_restores_the_rest() -> None:
    centre = torch.tensor([0.5, 0.2, 0.9, 0.4, 0.0, 1.0]).view(1, 1, 2, 3).repeat(4, 1, 1, 1)
    images = centre.clone()
    images[:] += torch.tensor([0.25, -0.1, 0.4, 0.25, 0.0, 1e-7]).view(1, 1, 2, 3)
    within = L0Ball(centre, torch.tensor([0.0, 1.9, 2.0, 9.0]))
    assert within.distances(images).tolist() == [4.0 + float(images[0, 0, 1, 2] != 1)] * 4
    projected = within.project_(images)
    assert projected is images
    assert within.distances(images).tolist() == [0, 1, 2, 4]
    assert within.contains(images).all()
    assert torch.equal(images[0], centre[0])
    assert images[1, 0, 0, 2] == 1  # the largest change, cut to the range
    assert images[2].flatten().tolist()[:2] == pytest.approx([0.75, 0.2])  # of two equal changes the first
    assert not L0Ball(centre, 1.0).contains(images)[2:].any()
    assert torch.equal(within.at(torch.tensor([2])).centre, centre[2:3])


def test_the_l0_ball_says_what_it_cannot_do() -> None:
    within = L0Ball(torch.zeros(1, 1, 2, 2), 1.0)
    with pytest.raises(NotImplementedError, match="no random point"):
        within.random(Draws(0, torch.arange(1)), "start")
    with pytest.raises(NotImplementedError, match="no step of steepest ascent"):
        within.step_(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), 0.1)


@pytest.mark.parametrize(
    ("attack", "norm", "offered"),
    [(CarliniWagner, "linf", "l2"), (DDN, "linf", "l2"), (SigmaZero, "l2", "l0"), (DeepFool, "l0", "l2 or linf")],
)
def test_a_norm_that_is_not_offered_is_refused(attack: type[Attack], norm: Norm, offered: str) -> None:
    with pytest.raises(ValidationError, match=f"attacks in norm {offered}, not {norm}"):
        attack(norm=norm)
