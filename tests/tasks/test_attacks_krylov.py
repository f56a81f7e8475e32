"""The second-order attack climbs its quadratic model to the top, and gains from curvature where there is some."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tasks.attacks.ascent import ascend, cross_entropy_gradient
from tasks.attacks.ball import Norm, ball, lengths
from tasks.attacks.draws import Draws
from tasks.attacks.fgsm import FGSM
from tasks.attacks.krylov import Krylov, climb_quadratic
from tasks.attacks.losses import cross_entropy
from tasks.models.small_cnn import SmallCNN
from tasks.seeds import generator
from tests.tasks import digits

pytestmark = pytest.mark.usefixtures("one_thread")

NORMS: list[Norm] = ["linf", "l2"]


@cache
def smooth_net() -> nn.Module:
    """The digits' network with softplus in the place of ReLU."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = SmallCNN().build(digits.DATA.signature())
    body = net.get_submodule("body")
    for name, layer in list(body.named_children()):
        if isinstance(layer, nn.ReLU):
            setattr(body, name, nn.Softplus(beta=5.0))
    examples = digits.DATA.load("train")
    images, labels = examples.images.float() / 255, examples.labels
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    draw = generator("smooth")
    for _ in range(2):
        for rows in torch.randperm(len(images), generator=draw).split(128):
            optimizer.zero_grad()
            F.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
    return net.eval().requires_grad_(False)


@cache
def problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor, Draws]:
    """The smooth network and about 190 digits that it gets right."""
    return smooth_net(), *digits.right(smooth_net(), 200)


def losses(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return cross_entropy(model(images), labels)


def quadratics(curvature: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Fifty Hessians (50, 12, 12) with eigenvalues of either or one sign, and gradients (50, 1, 3, 4)."""
    draw = generator("quadratics")
    rotations = torch.linalg.qr(torch.randn(50, 12, 12, generator=draw)).Q
    values = torch.randn(50, 12, generator=draw)
    if curvature != "either":
        values = values.abs() * (1 if curvature == "convex" else -1)
    gradients = torch.randn(50, 1, 3, 4, generator=draw)
    return rotations @ torch.diag_embed(values) @ rotations.mT, gradients


def times(hessians: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    return torch.einsum("nij,nj->ni", hessians, vectors.flatten(1)).view_as(vectors)


@pytest.mark.parametrize("curvature", ["either", "convex", "concave"])
@pytest.mark.parametrize("radius", [0.1, 1.0, 100.0])
def test_in_full_dimension_the_top_of_a_quadratic_is_found(curvature: str, radius: float) -> None:
    hessians, gradients = quadratics(curvature)
    top = climb_quadratic(lambda given: times(hessians, given), gradients, torch.full((50, 1, 1, 1), radius), 12)
    # The conditions of a global maximum within the ball (Moré & Sorensen 1983): (damping - H) top = gradient with a
    # damping that is at least zero and the largest eigenvalue, and zero inside the ball.
    slope = (gradients + times(hessians, top)).flatten(1)
    flat, length = top.flatten(1), lengths(top).flatten()
    damping = (flat * slope).sum(dim=1) / length.square()
    scale = gradients.flatten(1).norm(dim=1)
    assert ((slope - damping.unsqueeze(1) * flat).norm(dim=1) < 2e-3 * scale).all()
    assert (length < radius * (1 + 1e-4)).all()
    assert (damping > torch.linalg.eigvalsh(hessians)[:, -1] - 1e-3).all()
    inside = length < radius * (1 - 1e-4)
    assert (damping[inside].abs() * length[inside] < 2e-3 * scale[inside]).all()
    assert bool(inside.any()) == (curvature == "concave" and radius > 1)


def test_each_dimension_of_the_subspace_climbs_higher_and_the_first_is_the_gradient() -> None:
    hessians, gradients = quadratics("either")
    radii = torch.ones(50, 1, 1, 1)
    heights = []
    for dimension in (1, 2, 4, 8, 12):
        top = climb_quadratic(lambda given: times(hessians, given), gradients, radii, dimension)
        heights.append(((gradients + times(hessians, top) / 2) * top).flatten(1).sum(dim=1))
        if dimension == 1:
            assert torch.allclose(top, gradients / lengths(gradients), atol=1e-5)
    for lower, higher in pairwise(heights):
        assert (higher > lower - 1e-4).all()
    assert heights[1].mean() > heights[0].mean() + 0.05
    assert heights[-1].mean() > heights[0].mean() + 0.1


def test_a_subspace_that_ends_early_is_enough() -> None:
    gradients = quadratics("either")[1]
    radii = torch.full((50, 1, 1, 1), 0.5)
    for curvature in (0.0, 2.0, -100.0):  # multiples of the identity: the gradient is an eigenvector
        top = climb_quadratic(lambda given: curvature * given, gradients, radii, 6)  # noqa: B023
        length = torch.minimum(radii, lengths(gradients) / 100) if curvature < 0 else radii
        assert torch.allclose(top, length * gradients / lengths(gradients), atol=1e-4)


def test_gradients_too_small_to_square_still_point_somewhere() -> None:
    hessians, gradients = quadratics("either")
    radii = torch.ones(50, 1, 1, 1)
    top = climb_quadratic(lambda given: times(hessians, given), gradients, radii, 4)
    tiny = climb_quadratic(lambda given: times(1e-30 * hessians, given), 1e-30 * gradients, radii, 4)
    assert torch.allclose(top, tiny, atol=1e-3)
    assert not climb_quadratic(lambda given: times(hessians, given), 0 * gradients, radii, 4).any()


class Curved(nn.Module):
    """Two classes, logits 0 and a known quadratic of the image."""

    def __init__(self) -> None:
        super().__init__()
        draw = generator("curved")
        self.slope = torch.randn(9, generator=draw)
        root = torch.randn(9, 9, generator=draw)
        self.curvature = 3 * (root + root.T)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1) - 0.5
        height = flat @ self.slope + ((flat @ self.curvature) * flat).sum(dim=1) / 2
        return torch.stack([torch.zeros_like(height), height], dim=1)


def test_the_attack_takes_the_damped_newton_step_of_the_true_hessian() -> None:
    model, epsilon = Curved(), 0.2
    images = 0.5 + 0.2 * (torch.rand(20, 1, 3, 3, generator=generator("images")) - 0.5)
    labels = (model(images)[:, 1] > 0).long()
    draws = Draws(0, torch.arange(20))
    moved = Krylov(norm="l2", dimension=9).perturb(model, images, labels, epsilon, draws) - images

    def loss(flat: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return cross_entropy(model(flat.view(1, 1, 3, 3)), label.view(1)).sum()

    for row in range(20):
        flat, label = images[row].flatten().double(), labels[row]
        model.double()
        model.slope, model.curvature = model.slope.double(), model.curvature.double()
        gradient = torch.autograd.functional.jacobian(lambda given: loss(given, label), flat)  # noqa: B023
        hessian = torch.autograd.functional.hessian(lambda given: loss(given, label), flat)  # noqa: B023
        low = max(float(torch.linalg.eigvalsh(hessian)[-1]), 0.0)
        high = low + float(gradient.norm()) / epsilon
        for _ in range(100):
            middle = (low + high) / 2
            step = torch.linalg.solve(middle * torch.eye(9, dtype=torch.float64) - hessian, gradient)
            low, high = (middle, high) if step.norm() > epsilon else (low, middle)
        expected = step * epsilon / step.norm()
        assert torch.allclose(moved[row].flatten().double(), expected, atol=2e-3)
        assert (moved[row].flatten().double() - epsilon * gradient / gradient.norm()).norm() > 0.05 * epsilon


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.06), ("linf", 0.1), ("l2", 1.0)])
def test_on_a_smooth_net_one_step_beats_fgsm_and_loses_to_pgd(norm: Norm, epsilon: float) -> None:
    model, images, labels, draws = problem()
    first = losses(model, FGSM(norm=norm).perturb(model, images, labels, epsilon, draws), labels)
    second = losses(model, Krylov(norm=norm).perturb(model, images, labels, epsilon, draws), labels)
    within = ball(norm, images, epsilon)
    tenth = ascend(cross_entropy_gradient(model, labels), images.clone(), within, 0.25 * epsilon, steps=10)
    assert second.mean() > 1.01 * first.mean()
    assert (second > first).float().mean() > 0.6
    assert losses(model, tenth, labels).mean() > 1.01 * second.mean()


@pytest.mark.parametrize("norm", NORMS)
def test_more_steps_break_more(norm: Norm) -> None:
    model, images, labels, draws = problem()
    epsilon = {"linf": 0.1, "l2": 1.0}[norm]
    once = Krylov(norm=norm).perturb(model, images, labels, epsilon, draws)
    often = Krylov(norm=norm, steps=5, relative_step=0.5).perturb(model, images, labels, epsilon, draws)
    assert digits.accuracy(model, often, labels) < digits.accuracy(model, once, labels) - 0.02


@pytest.mark.parametrize("attack", [Krylov(norm=norm, steps=steps) for norm in NORMS for steps in (1, 3)], ids=str)
def test_images_stay_in_their_ball_and_nothing_else_moves(attack: Krylov) -> None:
    model, images, labels, draws = problem()
    labels = labels.clone()
    labels[:10] = (labels[:10] + 1) % 10
    radii = torch.linspace(0, {"linf": 0.3, "l2": 3.0}[attack.norm], len(images))
    before, state = images.clone(), torch.get_rng_state()
    perturbed = attack.perturb(model, images, labels, radii, draws)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, before)
    assert not images.requires_grad
    assert not perturbed.requires_grad
    assert ball(attack.norm, images, radii).contains(perturbed).all()
    assert torch.equal(perturbed[:10], images[:10])  # misclassified already
    assert torch.equal(attack.perturb(model, images, labels, 0.0, draws), images)


@pytest.mark.parametrize("norm", NORMS)
def test_an_outcome_does_not_depend_on_the_company(norm: Norm) -> None:
    # On a CPU softplus itself depends on the place in the batch, in the last bit; ReLU does not.
    model = digits.net("standard")
    images, labels, draws = digits.right(model, 60)
    attack, epsilon = Krylov(norm=norm, steps=3), {"linf": 0.05, "l2": 0.8}[norm]
    whole = attack.perturb(model, images, labels, epsilon, draws)
    some = torch.tensor([40, 3, 27, 12, 50, 9, 30, 31, 7, 45, 20, 1])
    assert torch.equal(attack.perturb(model, images[some], labels[some], epsilon, draws.at(some)), whole[some])


def test_zero_gradients_leave_the_images_where_they_are() -> None:
    class Constant(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 0 * images.flatten(1)[:, :3] + torch.tensor([0.0, 9.0, 1.0])

    images = problem()[1][:6]
    for norm in NORMS:
        attack = Krylov(norm=norm, steps=2)
        assert torch.equal(
            attack.perturb(Constant(), images, torch.ones(6).long(), 0.1, Draws(0, torch.arange(6))), images
        )
