"""FAB and FAB-T step exactly, find what the reference finds, and serve every epsilon at once."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from pyautoattack.fab_pt import FABAttack_PT
from torch import nn

from tasks.attacks.ball import Norm, ball
from tasks.attacks.box_hyperplane import Hyperplanes
from tasks.attacks.draws import Draws
from tasks.attacks.fab import FAB
from tasks.attacks.fab_t import FABT
from tasks.attacks.minimum_norm import MinimumNorm
from tasks.attacks.nearest_boundary import NearestBoundary
from tasks.device import settle
from tasks.seeds import generator
from tests.tasks import attack_toys, digits

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
HALVES: dict[Norm, float] = {"linf": 0.2, "l2": 1.8, "l1": 10.0}
"""Radii within which the network trained with FGSM-RS has a mistake near about half of the images."""


@pytest.fixture(autouse=True)
def _settled() -> None:
    settle(1)


@cache
def weak_net() -> nn.Module:
    return digits.net("fgsm-rs")


class LinearNet(nn.Module):
    """Logits that are linear in the image: every boundary is a hyperplane."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.rows = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.rows += len(images)
        products = (images.flatten(1).unsqueeze(1) * self.weight).sum(dim=2)  # each row for itself, in any company
        return products + self.bias


def linear_problem(classes: int) -> tuple[LinearNet, torch.Tensor, torch.Tensor, Draws]:
    draw = generator("linear", classes)
    model = LinearNet(torch.randn(classes, 36, generator=draw), torch.randn(classes, generator=draw))
    images = torch.rand(40, 1, 6, 6, generator=draw).mul(1.4).sub(0.2).clamp(0, 1)
    return model, images, model(images).argmax(dim=1), Draws(0, torch.arange(40))


def length(norm: Norm, change: torch.Tensor) -> torch.Tensor:
    order = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}[norm]
    found: torch.Tensor = torch.linalg.vector_norm(change.flatten(1), ord=order, dim=1)
    return found


def lower_bound(norm: Norm, points: torch.Tensor, normals: torch.Tensor, rise: torch.Tensor) -> torch.Tensor:
    """No change of the points within [0, 1] that reaches the hyperplanes is shorter; for those that can be reached."""
    upward = (normals * rise.sign().unsqueeze(1)) > 0
    room, largest = torch.where(upward, 1 - points, points), normals.abs().amax(dim=1, keepdim=True)
    weight, missing = normals.abs() / largest, rise.abs().unsqueeze(1) / largest
    if norm == "l1":  # the dual function, at each of its kinks
        prices = 1 / weight.unsqueeze(1)
        gains = (room.unsqueeze(2) * (weight.unsqueeze(2) * prices - 1).clamp(min=0)).sum(dim=1)
        return (prices.squeeze(1) * missing - gains).amax(dim=1)
    low, high = torch.zeros_like(missing), torch.full_like(missing, 1.0 if norm == "linf" else 1e9)
    for _ in range(100):
        middle = (low + high) / 2
        moves = torch.minimum(middle if norm == "linf" else middle * weight, room)
        enough = (weight * moves).sum(dim=1, keepdim=True) >= missing
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    if norm == "linf":  # within this radius the product cannot rise enough
        return low.squeeze(1)
    moves = torch.minimum(low * weight, room)
    dual = low * missing - (low * weight * moves - moves**2 / 2).sum(dim=1, keepdim=True)
    return (2 * dual).clamp(min=0).sqrt().squeeze(1)


def planes(dtype: torch.dtype, reachable: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points with coordinates at and away from 0 and 1, normals of many magnitudes with equal ones, and rises."""
    draw = generator("planes", reachable)
    points = torch.rand(400, 30, generator=draw, dtype=torch.float64).mul(1.6).sub(0.3).clamp(0, 1)
    normals = torch.randn(400, 30, generator=draw, dtype=torch.float64).exp() - 1
    normals[:, :6] = normals[:, :1]
    normals *= torch.logspace(-9, 6, 400, dtype=torch.float64).unsqueeze(1)
    sign = torch.randint(2, (400,), generator=draw) * 2 - 1
    corner = (normals * sign.unsqueeze(1) > 0).double()
    share = torch.rand(400, generator=draw, dtype=torch.float64) ** 3 if reachable else 1.5
    rise = (normals * (corner - points)).sum(dim=1) * share
    return points.to(dtype), normals.to(dtype), rise.to(dtype)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_ways_onto_hyperplanes_reach_them_and_no_way_is_shorter(norm: Norm, dtype: torch.dtype) -> None:
    points, normals, rise = planes(dtype, reachable=True)
    ways = Hyperplanes(norm, normals).ways(points, rise)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-4
    assert (points + ways).clamp(0, 1).sub(points + ways).abs().max() <= 1e-6
    assert ((normals * ways).sum(dim=1) / rise - 1).abs().max() < tolerance
    shortest = lower_bound(norm, points.double(), normals.double(), rise.double())
    assert shortest.min() > 0
    assert (length(norm, ways.double()) / shortest - 1).abs().max() < tolerance


@pytest.mark.parametrize("norm", NORMS)
def test_a_hyperplane_out_of_reach_leads_to_the_closest_corner(norm: Norm) -> None:
    points, normals, rise = planes(torch.float32, reachable=False)
    corner = (normals * rise.sign().unsqueeze(1) > 0).float()
    assert (points + Hyperplanes(norm, normals).ways(points, rise) - corner).abs().max() < 1e-6


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_moves_without_a_normal_or_without_a_distance(norm: Norm) -> None:
    points = torch.rand(2, 5, generator=generator("still"))
    normals = torch.tensor([[0.0] * 5, [1.0, -2.0, 0.0, 3.0, 1e-30]])
    assert torch.equal(Hyperplanes(norm, normals).ways(points, torch.tensor([1.0, 0.0])), torch.zeros(2, 5))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("attack", [FAB, FABT])
def test_mistakes_of_a_linear_model_are_the_nearest_there_are(
    attack: type[NearestBoundary], classes: int, norm: Norm
) -> None:
    model, images, labels, draws = linear_problem(classes)
    found, any_found = attack(norm=norm, steps=30).nearest(model, images, labels, draws)
    assert any_found.all()
    assert (model(found).argmax(dim=1) != labels).all()
    logits, bounds = model(images).double(), []
    for other in range(classes):
        normals = (model.weight[other] - model.weight[labels]).double()
        gap = logits.gather(1, labels.unsqueeze(1)).squeeze(1) - logits[:, other]
        bound = lower_bound(norm, images.flatten(1).double(), normals, gap)
        bounds.append(bound.masked_fill(labels == other, torch.inf))
    nearest = torch.stack(bounds).amin(dim=0)
    excess = length(norm, (found - images).double()) / nearest - 1
    assert excess.min() > -1e-5
    assert excess.median() < 0.006  # two steps that go 5 % too far
    # Of several boundaries FAB goes to the one that would be closest if there were no box.
    assert excess.max() < (0.05 if attack is FAB and classes > 2 else 0.01)


@pytest.mark.parametrize(("norm", "name"), [("linf", "Linf"), ("l2", "L2"), ("l1", "L1")])
@pytest.mark.parametrize("attack", [FAB(steps=20), FABT(steps=20, targets=2)], ids=["fab", "fab-t"])
def test_distances_are_those_of_the_reference(attack: NearestBoundary, norm: Norm, name: str) -> None:
    images, labels, draws = digits.right(weak_net(), 50)
    found, any_found = attack.model_copy(update={"norm": norm}).nearest(weak_net(), images, labels, draws)
    mine = length(norm, found - images).masked_fill(~any_found, torch.inf)
    targeted = isinstance(attack, FABT)
    reference = FABAttack_PT(weak_net(), norm=name, n_iter=20, targeted=targeted, device="cpu")
    its = torch.full_like(mine, torch.inf)
    for reference.target_class in (2, 3) if targeted else (None,):
        other = reference.attack_single_run(images, labels, is_targeted=targeted)
        wrong = weak_net()(other).argmax(dim=1) != labels
        its = torch.minimum(its, length(norm, other - images).masked_fill(~wrong, torch.inf))
    both = any_found & its.isfinite()
    assert both.float().mean() > 0.8
    assert torch.equal(any_found, its.isfinite())
    change = (mine / its - 1)[both]
    assert change.abs().median() < 1e-4
    assert change.abs().max() < 0.05  # rounding decides where a walk goes on from


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "attack", [FAB(steps=6, restarts=2), FABT(steps=6, targets=3, restarts=2)], ids=["fab", "fab-t"]
)
def test_one_epsilon_has_the_verdicts_of_the_search_for_the_nearest(attack: NearestBoundary, norm: Norm) -> None:
    attack = attack.model_copy(update={"norm": norm})
    images, labels, draws = digits.right(weak_net(), 50)
    epsilon = torch.full((len(images),), HALVES[norm]) * torch.linspace(0.8, 1.2, len(images))
    found, any_found = attack.nearest(weak_net(), images, labels, draws)
    near = any_found & (ball(norm, images, epsilon).distances(found) <= epsilon)
    assert 0.2 < near.float().mean() < 0.8
    quick = attack.search(weak_net(), images, labels, epsilon, draws)
    assert ball(norm, images, epsilon).contains(quick).all()
    wrong = weak_net()(quick).argmax(dim=1) != labels
    assert wrong[near].all()
    slow = MinimumNorm.search(attack, weak_net(), images, labels, epsilon, draws)
    assert torch.equal(wrong, weak_net()(slow).argmax(dim=1) != labels)
    assert torch.equal(quick[~near], slow[~near])


def test_an_example_with_a_mistake_within_epsilon_stops_costing() -> None:
    model, images, labels, draws = linear_problem(4)
    FABT(steps=30).perturb(model, images, labels, 0.9, draws)
    first = model.rows
    FABT(steps=30).perturb(model, images, labels, 1e-4, draws)
    assert first < 0.1 * (model.rows - first)


@pytest.mark.parametrize("norm", NORMS)
def test_company_changes_nothing(norm: Norm) -> None:
    model, images, labels, draws = linear_problem(4)
    attack = FABT(norm=norm, steps=10, restarts=2)
    together, _ = attack.nearest(model, images, labels, draws)
    some = torch.tensor([31, 2, 17])
    apart, _ = attack.nearest(model, images[some], labels[some], draws.at(some))
    assert torch.equal(apart, together[some])
    alone = attack.perturb(model, images[2:3], labels[2:3], 0.02, draws.at(torch.tensor([2])))
    assert torch.equal(alone, attack.perturb(model, images, labels, 0.02, draws)[2:3])


def test_company_changes_no_start_of_later_walks() -> None:
    images, labels, draws = digits.right(weak_net(), 40)
    attack = FAB(steps=3, restarts=3)
    together, _ = attack.nearest(weak_net(), images, labels, draws)
    some = torch.tensor([31, 2, 17, 8, 30, 5, 22, 11])
    apart, _ = attack.nearest(weak_net(), images[some], labels[some], draws.at(some))
    assert torch.equal(apart, together[some])
    first, _ = FAB(steps=3).nearest(weak_net(), images[some], labels[some], draws.at(some))
    assert not torch.equal(apart, first)  # later walks have found something


def test_more_walks_only_come_nearer() -> None:
    images, labels, draws = digits.right(weak_net(), 40)
    distances = []
    for restarts in (1, 4):
        found, any_found = FAB(steps=8, restarts=restarts).nearest(weak_net(), images, labels, draws)
        distances.append(length("linf", found - images).masked_fill(~any_found, torch.inf))
    assert (distances[1] <= distances[0]).all()
    assert (distances[1] < distances[0]).float().mean() > 0.2


@pytest.mark.parametrize("attack", [FAB(steps=10), FABT(steps=10)], ids=["fab", "fab-t"])
def test_what_is_wrong_already_comes_back_as_it_is(attack: NearestBoundary) -> None:
    model, images, labels, draws = linear_problem(4)
    labels = torch.where(torch.arange(40) < 9, (labels + 1) % 4, labels)
    found, any_found = attack.nearest(model, images, labels, draws)
    assert any_found.all()
    assert torch.equal(found[:9], images[:9])
    assert torch.equal(attack.perturb(model, images, labels, 0.1, draws)[:9], images[:9])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", [FAB, FABT])
def test_a_model_without_gradients_yields_attempts_and_no_mistakes(attack: type[NearestBoundary], norm: Norm) -> None:
    _, images, labels, draws = linear_problem(4)
    flat = LinearNet(torch.zeros(4, 36), torch.tensor([1.0, 0.5, 0.0, 0.0]))
    own = torch.zeros_like(labels)
    found, any_found = attack(norm=norm, steps=3, restarts=2).nearest(flat, images, own, draws)
    assert not any_found.any()
    assert ((found >= 0) & (found <= 1)).all()  # and so no NaN
    assert ball(norm, images, 0.1).contains(attack(norm=norm, steps=3).perturb(flat, images, own, 0.1, draws)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_two_classes_and_a_radius_of_zero_are_fine(norm: Norm) -> None:
    images, labels = attack_toys.pixels()
    draws = Draws(0, torch.arange(len(images)))
    model = attack_toys.standard_net()
    assert torch.equal(FABT(norm=norm, steps=2).perturb(model, images, labels, 0.0, draws), images)
    # There is one other class, so both walk to it; in l1 the last example took five steps, so twenty leave room.
    found, any_found = FABT(norm=norm, steps=20).nearest(model, images, labels, draws)
    assert any_found.all()
    assert torch.equal(found, FAB(norm=norm, steps=20).nearest(model, images, labels, draws)[0])


def test_fewer_classes_than_targets_are_said() -> None:
    assert list(FABT().fallbacks(10)) == []
    assert list(FABT().fallbacks(4)) == ["fab-t tries 3 targets, not 9: the data have 4 classes"]
    assert list(FAB().fallbacks(2)) == []


def test_caller_finds_everything_as_it_was() -> None:
    model, images, labels, draws = linear_problem(4)
    model.train()
    images.requires_grad_()
    before, state = images.detach().clone(), torch.get_rng_state()
    found = FABT(steps=3, restarts=2).perturb(model, images, labels, 0.1, draws)
    assert model.training
    assert not found.requires_grad
    assert torch.equal(images, before)
    assert images.grad is None
    assert torch.equal(torch.get_rng_state(), state)
