"""Random search finds the optimum where it is known, wastes no query, and agrees with the reference implementation."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.ball import Norm, ball
from tasks.attacks.draws import Draws
from tasks.attacks.fgsm import FGSM
from tasks.attacks.fgsm_rs import FGSMRS
from tasks.attacks.mi_fgsm import MIFGSM
from tasks.attacks.pgd import PGD
from tasks.attacks.random_noise import RandomNoise
from tasks.attacks.square import Square
from tasks.seeds import generator
from tests.tasks import digits

pytestmark = pytest.mark.usefixtures("one_thread")

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
RADII: dict[Norm, float] = {"linf": 0.1, "l2": 1.0, "l1": 6.0}
ATTACKS: list[Attack] = [
    *(Square(norm=norm, queries=60, restarts=2) for norm in NORMS),
    *(RandomNoise(norm=norm, points=5) for norm in NORMS),
    *(FGSMRS(norm=norm) for norm in FGSMRS.norms),
    *(MIFGSM(norm=norm, steps=5) for norm in MIFGSM.norms),
]


class Linear(nn.Module):
    """Two classes, logits 0 and (x - 0.5) . w: an attack's best move is known in closed form."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.asked: list[int] = []

    def margin(self, images: torch.Tensor) -> torch.Tensor:
        return (images - 0.5).flatten(1) @ self.weight

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(images))
        margin = self.margin(images)
        return torch.stack([torch.zeros_like(margin), margin], dim=1)


def linear_problem(*shape: int) -> tuple[Linear, torch.Tensor, torch.Tensor, Draws]:
    """A linear model, 60 images far from 0 and 1, their classes, and draws."""
    draw = generator("linear", *shape)
    images = 0.5 + 0.2 * (torch.rand(60, *shape, generator=draw) - 0.5)
    model = Linear(torch.randn(images[0].numel(), generator=draw))
    return model, images, (model.margin(images) > 0).long().detach(), Draws(0, torch.arange(60))


def colourful(*shape: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor, Draws]:
    """A small random network, 24 images that touch 0 and 1, its own answers, and draws."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(shape[0], 6, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)).eval()
        model(torch.zeros(1, *shape))
    images = (1.4 * torch.rand(24, *shape, generator=generator("colourful")) - 0.2).clamp(0, 1)
    return model, images, model(images).argmax(dim=1), Draws(3, torch.arange(24))


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
@pytest.mark.parametrize("shape", [(3, 6, 9), (2, 11, 4)], ids=str)
def test_images_of_any_shape_stay_in_their_own_ball_and_in_the_range(attack: Attack, shape: tuple[int, ...]) -> None:
    model, images, labels, draws = colourful(*shape)
    epsilon = RADII[attack.norm] * torch.linspace(0, 2, 24)
    perturbed = attack.perturb(model, images, labels, epsilon, draws)
    assert perturbed.shape == images.shape
    assert not perturbed.requires_grad
    within = ball(attack.norm, images, epsilon)
    assert within.contains(perturbed).all()
    assert torch.allclose(perturbed[0], images[0], atol=1e-6)
    used = within.distances(perturbed)[1:] / epsilon[1:]
    assert (used > 0).all()
    assert used.max() > 0.6


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_outcomes_do_not_depend_on_company(attack: Attack) -> None:
    model = digits.net("standard")
    images, labels, draws = digits.right(model, 48)
    together = attack.perturb(model, images, labels, RADII[attack.norm], draws)
    some = torch.tensor([40, 3, 17, 21, 8, 30, 31, 2])
    apart = attack.perturb(model, images[some], labels[some], RADII[attack.norm], draws.at(some))
    standing = model(together[some]).argmax(dim=1) == labels[some]
    assert standing.sum() > 1  # companies shrink below 4 only where all have fallen
    assert torch.equal(together[some][standing], apart[standing])
    assert torch.equal(model(apart).argmax(dim=1) == labels[some], standing)


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_only_the_draws_are_random_and_nothing_given_is_changed(attack: Attack) -> None:
    model, images, labels, draws = colourful(3, 8, 8)
    given, state = images.clone(), torch.random.get_rng_state()
    epsilon = RADII[attack.norm] / 20
    first, again = (attack.perturb(model, images, labels, epsilon, draws) for _ in range(2))
    other = attack.perturb(model, images, labels, epsilon, draws.under("other"))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == isinstance(attack, MIFGSM)
    assert torch.equal(images, given)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_side_follows_the_schedule_of_ten_thousand_queries() -> None:
    queries = (0, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 4000, 4001, 4999, 8001)
    sides = (25, 25, 18, 18, 13, 13, 9, 9, 6, 6, 4, 4, 3, 3, 2, 2, 1)
    assert tuple(Square().side(query, 28, 28) for query in queries) == sides
    assert [Square(norm="l2").side(query, 28, 28) for query in (0, 11, 501, 1001, 9000)] == [25, 19, 7, 5, 3]
    assert Square().side(0, 4, 100) == 4


def test_on_a_linear_model_square_finds_the_optimum() -> None:
    model, images, labels, draws = linear_problem(1, 4, 4)
    perturbed = Square(queries=900).perturb(model, images, labels, 0.01, draws)
    toward = 1 - 2 * labels
    reach = 0.01 * model.weight.detach().abs().sum()
    reached = toward * (model.margin(perturbed) - model.margin(images))
    stands = (model.margin(perturbed) > 0).long() == labels
    assert 10 < stands.sum() < 55
    assert torch.allclose(reached[stands], reach.expand(60)[stands], atol=1e-5)
    assert torch.equal(stands, model.margin(images).abs() > reach)


@pytest.mark.parametrize(("norm", "share"), [("l2", 0.6), ("l1", 0.5)])
def test_on_a_linear_model_square_comes_near_the_optimum_in_other_norms(norm: Norm, share: float) -> None:
    model, images, labels, draws = linear_problem(2, 5, 6)
    epsilon = {"l2": 0.02, "l1": 0.06}[norm]
    perturbed = Square(norm=norm, queries=500).perturb(model, images, labels, epsilon, draws)
    weight = model.weight.detach()
    reach = epsilon * (weight.norm() if norm == "l2" else weight.abs().max())
    reached = (1 - 2 * labels) * (model.margin(perturbed) - model.margin(images))
    stands = (model.margin(perturbed) > 0).long() == labels
    assert stands.sum() > 30
    assert (reached[stands] / reach).mean() > share
    assert (reached[stands] <= reach * 1.0001).all()


def test_square_leaves_every_pixel_at_an_end_of_its_interval_and_starts_with_stripes() -> None:
    model, images, labels, draws = colourful(3, 9, 7)
    for queries in (1, 300):
        perturbed = Square(queries=queries).perturb(model, images, labels, 0.01, draws)
        ends = (images - 0.01).clamp(min=0), (images + 0.01).clamp(max=1)
        assert ((perturbed == ends[0]) | (perturbed == ends[1])).all()
    start: list[torch.Tensor] = []

    def stop(images: torch.Tensor) -> torch.Tensor:
        start.append(images.clone())
        return torch.eye(5)[(labels + 1) % 5]

    grey = torch.full_like(images, 0.5)
    Square().perturb(stop, grey, labels, 0.01, draws)  # type: ignore[arg-type]
    assert len(start) == 1
    change = start[0] - grey
    assert (change == change[:, :, :1]).all()
    assert len({tuple(stripe.tolist()) for stripe in change[:, :, 0].flatten(0, 1).sign()}) > 40


def test_windows_differ_between_examples_and_reach_every_pixel() -> None:
    _, images, _, draws = linear_problem(3, 5, 8)
    labels = torch.zeros(60, dtype=torch.int64)
    tried: list[torch.Tensor] = []

    class Refusing(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            tried.append(images.clone())
            return torch.tensor([[5.0, 0.0]]).expand(len(images), 2)

    Square(queries=100, share=0.1).perturb(Refusing(), images, labels, 0.1, draws)
    start, *proposals = [each for each in tried if len(each) == 60]  # those that are new for every example
    changed = torch.stack([(proposal != start).any(dim=1) for proposal in proposals[:3]])
    assert len(changed) == 3
    assert changed.flatten(0, 1).any(dim=0).all()
    assert changed.any(dim=-1).sum(dim=-1).max() == 2  # the side: the square root of a tenth of 40 pixels
    assert len({tuple(window.flatten().tolist()) for window in changed[0]}) > 10


def test_what_has_fallen_or_would_not_change_is_not_computed() -> None:
    model, images, labels, draws = linear_problem(1, 4, 4)
    Square(queries=300).perturb(model, images, labels, 0.0, draws)
    assert model.asked == [60]
    model.asked.clear()
    Square(queries=300).perturb(model, images, 1 - labels, 1e-6, draws)
    assert model.asked == [60]
    model.asked.clear()
    perturbed = Square(queries=300).perturb(model, images, labels, 0.01, draws)
    stands = int(((model.margin(perturbed) > 0).long() == labels).sum())
    assert stands < 55
    assert max(model.asked[200:]) <= stands + 2
    assert sum(model.asked[100:]) < 0.7 * 200 * stands  # on so few pixels most late windows change nothing


def test_square_asks_for_no_gradient_and_breaks_what_hides_it() -> None:
    model = digits.net("standard")

    class Quantised(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return model((images * 16).round() / 16)

    images, labels, draws = digits.right(model, 60)
    square = Square(queries=500).perturb(Quantised(), images, labels, 0.2, draws)
    gradient = PGD(steps=20).perturb(Quantised(), images, labels, 0.2, draws)
    assert digits.accuracy(Quantised(), gradient, labels) > 0.7
    assert digits.accuracy(Quantised(), square, labels) < 0.3


def test_a_second_start_attacks_only_what_stood_and_breaks_no_less() -> None:
    model = digits.net("standard")
    images, labels, draws = digits.right(model, 60)
    once, twice = (
        model(Square(queries=100, restarts=n).perturb(model, images, labels, 0.1, draws)).argmax(dim=1) == labels
        for n in (1, 2)
    )
    assert not (twice & ~once).any()
    assert twice.sum() < once.sum()


@pytest.mark.parametrize("norm", FGSMRS.norms)
def test_fgsm_rs_takes_one_step_from_its_start(norm: Norm) -> None:
    model, images, labels, draws = linear_problem(1, 4, 4)
    within = ball(norm, images, torch.full((60,), 0.05))
    expected = within.random(draws, "start")
    toward = (1 - 2 * labels).view(-1, 1, 1, 1) * model.weight.detach().view(1, 1, 4, 4)
    within.step_(expected, toward, 1.25 * 0.05)
    assert torch.allclose(FGSMRS(norm=norm).perturb(model, images, labels, 0.05, draws), expected, atol=1e-6)
    if norm == "linf":  # two radii lead from every start to the end of the interval
        far = FGSMRS(relative_step=2.0).perturb(model, images, labels, 0.05, draws)
        assert torch.allclose(far, FGSM().perturb(model, images, labels, 0.05, draws), atol=1e-6)


@pytest.mark.parametrize("norm", MIFGSM.norms)
@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_mi_fgsm_follows_its_paper(norm: Norm, decay: float) -> None:
    model, images, labels, draws = colourful(3, 8, 8)
    epsilon, steps = 0.05 if norm == "linf" else 0.3, 6
    perturbed = MIFGSM(norm=norm, steps=steps, decay=decay).perturb(model, images, labels, epsilon, draws)
    compared = 0
    for row in range(24):
        image, label, gathered, tried = images[row : row + 1], labels[row : row + 1], 0.0, []
        current = image.clone()
        for step in range(steps + 1):
            current.requires_grad_()
            logits = model(current)
            loss = nn.functional.cross_entropy(logits, label)
            tried.append((loss.item(), current.detach(), bool(logits.argmax() != label)))
            if tried[-1][2] or step == steps:
                break
            gradient = torch.autograd.grad(loss, current)[0]
            gathered = decay * gathered + gradient / gradient.abs().sum()
            direction = gathered.sign() if norm == "linf" else gathered / gathered.norm()
            current = (current.detach() + epsilon / steps * direction).clamp(0, 1)
        expected = tried[-1] if tried[-1][2] else max(tried, key=lambda each: each[0])
        close = torch.allclose(perturbed[row : row + 1], expected[1], atol=1e-5)
        compared += close
    assert compared >= 23  # a gradient near zero may change its sign with the company


def test_momentum_remembers() -> None:
    model, images, labels, draws = colourful(3, 8, 8)
    with_it, without = (MIFGSM(decay=decay).perturb(model, images, labels, 0.03, draws) for decay in (1.0, 0.0))
    assert not torch.equal(with_it, without)


def test_more_random_points_find_no_less_and_all_of_them_are_tried() -> None:
    model = digits.net("standard")
    images, labels, draws = digits.right(model, 100)
    fallen = [
        model(RandomNoise(points=points).perturb(model, images, labels, 0.5, draws)).argmax(dim=1) != labels
        for points in (1, 4, 16)
    ]
    assert not (fallen[0] & ~fallen[1]).any()
    assert not (fallen[1] & ~fallen[2]).any()
    assert fallen[0].sum() < fallen[1].sum() < fallen[2].sum()


def test_random_points_are_weaker_than_every_attack() -> None:
    model = digits.net("standard")
    images, labels, draws = digits.right(model, 60)
    noise = digits.accuracy(model, RandomNoise(points=50).perturb(model, images, labels, 0.15, draws), labels)
    assert noise > 0.85
    for attack in (FGSMRS(), MIFGSM(), Square(queries=300)):
        assert digits.accuracy(model, attack.perturb(model, images, labels, 0.15, draws), labels) < noise - 0.2


@pytest.mark.parametrize(
    ("attack", "fields"),
    [
        (Square, {"queries": 0}),
        (Square, {"share": 0.0}),
        (Square, {"share": 1.1}),
        (Square, {"norm": "l0"}),
        (FGSMRS, {"relative_step": 0.0}),
        (MIFGSM, {"steps": 0}),
        (MIFGSM, {"decay": -0.1}),
        (MIFGSM, {"norm": "l1"}),
        (RandomNoise, {"points": 0}),
    ],
    ids=str,
)
def test_values_out_of_bounds_do_not_validate(attack: type[Attack], fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        attack.model_validate(fields)


@pytest.mark.parametrize("side", [1, 2, 3, 6, 7, 13, 25])
@pytest.mark.parametrize(("norm", "power"), [("L2", 2), ("L1", 1)])
def test_patterns_are_those_of_the_reference(side: int, norm: str, power: int) -> None:
    square = pytest.importorskip("pyautoattack.square")
    from tasks.attacks.square import _pattern

    reference = square.SquareAttack(None, norm=norm, device="cpu")
    with torch.random.fork_rng():
        expected = {tuple(reference.eta(side).round(decimals=5).flatten().tolist()) for _ in range(20)}
    found = _pattern(side, power, torch.device("cpu")).round(decimals=5)
    for one in expected:
        assert torch.isclose(found, torch.tensor(one), atol=2e-5).all(dim=1).any()


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_square_agrees_with_the_reference(norm: Norm) -> None:
    square = pytest.importorskip("pyautoattack.square")
    model = digits.net("fgsm-rs")
    images, labels, draws = digits.right(model, 200)
    epsilon = {"linf": 0.2, "l2": 2.0, "l1": 10.0}[norm]
    own, theirs = [], []
    for seed in range(3):
        perturbed = Square(norm=norm, queries=2000).perturb(model, images, labels, epsilon, draws.under(seed))
        own.append(digits.accuracy(model, perturbed, labels))
        reference = square.SquareAttack(
            model, norm=norm.capitalize(), n_queries=2000, eps=epsilon, seed=seed, resc_schedule=False
        )
        with torch.random.fork_rng():
            theirs.append(digits.accuracy(model, reference.perturb(images, labels), labels))
    assert sum(own) / 3 <= sum(theirs) / 3 + 0.006 + 1 / len(images)
    assert sum(own) / 3 >= sum(theirs) / 3 - 0.05  # windows of one's own find more in L-inf
