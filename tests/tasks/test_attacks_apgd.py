"""Auto-PGD follows its authors' code step for step, drops what falls, and stays in its balls, L1 among them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.apgd import APGD
from tasks.attacks.apgd_t import APGDT
from tasks.attacks.auto_step import HalvingAscent, SparseAscent, _phases
from tasks.attacks.ball import L1Ball, Norm, ball
from tasks.attacks.draws import Draws
from tasks.device import settle
from tasks.seeds import generator
from tests.tasks import digits

THEIR_NAMES: dict[Norm, str] = {"linf": "Linf", "l2": "L2", "l1": "L1"}
RADII: dict[Norm, float] = {"linf": 0.2, "l2": 1.6, "l1": 8.0}
DUAL = {"linf": lambda w: w.abs().sum(), "l2": lambda w: w.norm(), "l1": lambda w: w.abs().amax()}
FEW = [APGD(steps=10, norm=norm, loss=loss) for norm in RADII for loss in ("ce", "dlr")] + [
    APGDT(steps=10, norm=norm, targets=3) for norm in RADII
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    settle(1)


class Counting(nn.Module):
    """Counts the images that its model sees, and never shows it fewer than four: that would round differently."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen = 0
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        self.calls += 1
        missing = max(4 - len(images), 0)
        padded = torch.cat([images, torch.zeros_like(images[:1]).expand(missing, -1, -1, -1)]) if missing else images
        logits: torch.Tensor = self.model(padded)
        return logits[: len(images)]


class Linear(nn.Module):
    """Logits (x - 0.5) . W + bias, without hidden state: an attack's best move is known in closed form."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images - 0.5).flatten(1) @ self.weight + self.bias


def standing(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        predicted: torch.Tensor = model(images).argmax(dim=1)
    return predicted == labels


def reference(model: nn.Module, attack: APGD | APGDT, epsilon: float) -> Any:
    base = pytest.importorskip("pyautoattack.autopgd_base")
    settings = {"n_iter": attack.steps, "norm": THEIR_NAMES[attack.norm], "eps": epsilon, "rho": attack.rho}
    if isinstance(attack, APGDT):
        return base.APGDAttack_targeted(model, n_target_classes=attack.targets, **settings)
    return base.APGDAttack(model, loss=attack.loss, **settings)


def their_verdicts(
    model: nn.Module, attack: APGD | APGDT, images: torch.Tensor, labels: torch.Tensor, epsilon: float, draws: Draws
) -> torch.Tensor:
    """Which images stand after the reference's ascents from our starting points."""
    theirs = reference(model, attack, epsilon)
    theirs.init_hyperparam(images)
    still = standing(model, images, labels)
    ranked = model(images).argsort(dim=1, descending=True)
    for rank in range(attack.targets if isinstance(attack, APGDT) else 1):
        rows = still.nonzero().squeeze(1)
        theirs.y_target = ranked[rows, rank + 1]
        started = draws.under(rank, 0) if isinstance(attack, APGDT) else draws.under(0)
        start = ball(attack.norm, images[rows], epsilon).surface(started.at(rows), "start")
        _, stands, _, _ = theirs.attack_single_run(images[rows], labels[rows], x_init=start)
        still[rows] = stands.bool()
    return still


@pytest.mark.parametrize(
    "attack",
    [APGD(), APGD(loss="dlr", steps=40), APGD(norm="l2", steps=40), APGDT(steps=30, targets=3)],
    ids=["ce", "dlr", "l2", "targeted"],
)
def test_from_equal_starts_the_authors_code_breaks_the_same_images(attack: APGD | APGDT) -> None:
    model = digits.net("fgsm-rs")
    images, labels, draws = digits.right(model, 100)
    epsilon = RADII[attack.norm]
    theirs = their_verdicts(model, attack, images, labels, epsilon, draws)
    ours = standing(model, attack.perturb(model, images, labels, epsilon, draws), labels)
    assert int((ours != theirs).sum()) <= 1  # an ulp can tip an image
    assert 20 < int(ours.sum()) < 80


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fgsm-rs", "pgd"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [APGD(), APGD(loss="dlr"), APGDT()], ids=["ce", "dlr", "targeted"])
def test_from_equal_starts_many_images_share_their_verdicts(
    attack: APGD | APGDT, norm: Norm, name: digits.Name
) -> None:
    model = digits.net(name)
    images, labels, draws = digits.right(model, 200 if isinstance(attack, APGDT) else 500)
    attack = attack.model_copy(update={"norm": norm})
    epsilon = digits.EPSILON[name] if norm == "linf" else RADII[norm]
    theirs = their_verdicts(model, attack, images, labels, epsilon, draws)
    ours = standing(model, attack.perturb(model, images, labels, epsilon, draws), labels)
    assert int((ours != theirs).sum()) <= 2
    assert int(ours.sum()) - int(theirs.sum()) <= 0.002 * len(labels) + 1


@pytest.mark.slow
@pytest.mark.parametrize("attack", [APGD(), APGD(loss="dlr"), APGD(norm="l2")], ids=["ce", "dlr", "l2"])
def test_from_its_own_starts_robust_accuracy_agrees_with_the_authors_code(attack: APGD) -> None:
    """Means of three starts, in points: one start against another moves the authors' own figure by half a point."""
    model = digits.net("pgd")
    images, labels, draws = digits.right(model, 500)
    epsilon = digits.EPSILON["pgd"] if attack.norm == "linf" else RADII[attack.norm]
    theirs, ours = 0.0, 0.0
    for seed in range(3):
        their_attack = reference(model, attack, epsilon)
        their_attack.seed = seed
        theirs += 100 / 3 * float(standing(model, their_attack.perturb(images, labels), labels).double().mean())
        found = attack.perturb(model, images, labels, epsilon, draws.under(seed))
        ours += 100 / 3 * float(standing(model, found, labels).double().mean())
    assert -0.6 <= ours - theirs <= 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fgsm-rs", "pgd"])
def test_in_l1_robust_accuracy_agrees_with_the_authors_code(name: digits.Name) -> None:
    """One start decides much in L1 (a standard deviation of two points): the means of five are compared."""
    model = digits.net(name)
    images, labels, draws = digits.right(model, 200)
    theirs, ours = 0.0, 0.0
    for seed in range(5):
        their_attack = reference(model, APGD(norm="l1"), RADII["l1"])
        their_attack.use_largereps, their_attack.seed = True, seed
        theirs += float(standing(model, their_attack.perturb(images, labels), labels).double().mean()) / 5
        found = APGD(norm="l1").perturb(model, images, labels, RADII["l1"], draws.under(seed))
        ours += float(standing(model, found, labels).double().mean()) / 5
    assert ours == pytest.approx(theirs, abs=0.02)


@pytest.mark.parametrize("attack", FEW, ids=lambda attack: f"{attack.kind}-{attack.norm}")
def test_an_examples_result_does_not_depend_on_its_company(attack: Attack) -> None:
    model = Counting(digits.net("fgsm-rs"))
    images, labels, draws = digits.right(model, 60)
    epsilon = torch.linspace(0.3, 1.5, len(labels)) * RADII[attack.norm]  # some fall at once, some never
    together = attack.perturb(model, images, labels, epsilon, draws)
    assert 5 < int(standing(model, together, labels).sum()) < len(labels) - 5
    order = torch.randperm(len(labels), generator=generator("company"))
    for rows in (order[:7], order[7:]):
        alone = attack.perturb(model, images[rows], labels[rows], epsilon[rows], draws.at(rows))
        assert torch.equal(alone, together[rows])


@pytest.mark.parametrize("attack", FEW, ids=lambda attack: f"{attack.kind}-{attack.norm}")
def test_results_stay_in_their_own_balls_and_nothing_else_changes(attack: Attack) -> None:
    model = digits.net("fgsm-rs")
    images, labels, draws = digits.right(model, 40)
    given = images.clone()
    epsilon = torch.linspace(0, 1.5, len(labels)) * RADII[attack.norm]
    before = torch.random.get_rng_state()
    found = attack.perturb(model, images, labels, epsilon, draws)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(images, given)
    assert not model.training
    assert not found.requires_grad
    assert found.shape == images.shape
    within = ball(attack.norm, images, epsilon)
    assert within.contains(found).all()
    assert (within.distances(found)[1:] > 0.5 * epsilon[1:]).all()  # and they use their balls
    assert torch.equal(found[0], images[0])  # its epsilon is zero


def test_what_falls_costs_no_more_forward_passes() -> None:
    model = Counting(digits.net("standard"))
    images, labels, draws = digits.right(model, 100)
    for attack in (APGD(restarts=3), APGDT()):
        model.seen = 0
        found = attack.perturb(model, images, labels, 0.25, draws)
        assert not standing(model, found, labels).any()
        assert model.seen < 15 * len(labels)


def test_only_what_stands_is_started_again() -> None:
    model = Counting(digits.net("fgsm-rs"))
    images, labels, draws = digits.right(model, 60)
    counts = []
    for restarts in (1, 2):
        model.seen = 0
        found = APGD(steps=20, restarts=restarts).perturb(model, images, labels, 0.2, draws)
        counts.append((int(standing(model.model, found, labels).sum()), model.seen))
    (once, seen_once), (twice, seen_twice) = counts
    assert twice <= once < len(labels)
    assert 0 < seen_twice - seen_once <= once * 21


def linear_problem(norm: Norm, classes: int = 2) -> tuple[Linear, torch.Tensor, torch.Tensor, float]:
    draw = generator("linear", norm)
    weight = torch.randn(16, classes, generator=draw)
    images = 0.5 + 0.2 * (torch.rand(200, 1, 4, 4, generator=draw) - 0.5)
    model = Linear(weight, torch.zeros(classes))
    return model, images, model(images).argmax(dim=1), {"linf": 0.02, "l2": 0.1, "l1": 0.1}[norm]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("kind", ["ce", "dlr", "targeted"])
def test_on_a_linear_model_of_two_classes_exactly_what_can_be_broken_breaks(norm: Norm, kind: str) -> None:
    model, images, labels, epsilon = linear_problem(norm)
    direction = model.weight[:, 1] - model.weight[:, 0]
    dual = DUAL[norm](direction)
    attack = APGDT(norm=norm) if kind == "targeted" else APGD(norm=norm, loss=kind)
    found = attack.perturb(model, images, labels, epsilon, Draws(0, torch.arange(200)))
    slack = (model(images) @ torch.tensor([-1.0, 1.0])).abs() - epsilon * dual
    decided = slack.abs() > 0.02 * epsilon * dual
    assert torch.equal(standing(model, found, labels)[decided], (slack > 0)[decided])
    assert 20 < int((slack > 0).sum()) < 180


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_what_stands_comes_back_as_the_closed_form_optimum(norm: Norm) -> None:
    model, images, _, epsilon = linear_problem(norm)
    model.bias = torch.tensor([8.0, 0.0])  # nothing can be broken
    found = APGD(norm=norm, loss="dlr").perturb(
        model, images, torch.zeros(200).long(), epsilon, Draws(0, torch.arange(200))
    )
    direction = model.weight[:, 1] - model.weight[:, 0]
    gain = ((found - images).flatten(1) * direction).sum(dim=1)
    dual = DUAL[norm](direction)
    assert torch.allclose(gain, (epsilon * dual).expand(200), rtol=0.02)


def test_every_target_is_tried_until_one_falls() -> None:
    """Of three wrong classes, the least likely on the clean image is the only one that any change can reach."""
    weight = torch.zeros(16, 4)
    weight[:, 3] = 10.0
    weight[:8, 3] = -10.0
    model = Counting(Linear(weight, torch.tensor([3.0, 2.0, 1.0, -14.0])))
    images, labels = torch.full((5, 1, 4, 4), 0.5), torch.zeros(5).long()
    draws = Draws(0, torch.arange(5))
    assert standing(model, APGDT(targets=2, steps=5).perturb(model, images, labels, 0.2, draws), labels).all()
    assert not standing(model, APGDT(targets=3, steps=5).perturb(model, images, labels, 0.2, draws), labels).any()
    model.calls = 0
    APGDT(steps=5).perturb(model, images, labels, 0.05, draws)
    assert model.calls == 1 + 3 * 6  # nine targets are three


def test_dlr_does_not_care_how_confident_the_model_is() -> None:
    class Confident(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = plain(images)
            return 1024 * logits

    plain = digits.net("fgsm-rs")
    images, labels, draws = digits.right(plain, 60)
    left = {
        (loss, type(model)): int(
            standing(plain, APGD(loss=loss, steps=20).perturb(model, images, labels, 0.2, draws), labels).sum()
        )
        for loss in ("ce", "dlr")
        for model in (plain, Confident())
    }
    assert abs(left["dlr", Confident] - left["dlr", type(plain)]) <= 1
    assert left["ce", Confident] > left["ce", type(plain)] + 10


def test_with_eot_the_mean_prediction_decides() -> None:
    class Fickle(nn.Module):
        calls = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            lead = 3.0 if self.calls % 2 else -0.2
            return torch.stack([lead + 0 * images.flatten(1).sum(dim=1), images.flatten(1)[:, 0] * 0.01], dim=1)

    images, labels, draws = torch.full((4, 1, 4, 4), 0.5), torch.zeros(4).long(), Draws(0, torch.arange(4))
    single, averaged = Fickle(), Fickle()
    APGD(steps=6).perturb(single, images, labels, 0.1, draws)
    APGD(steps=6, eot=2).perturb(averaged, images, labels, 0.1, draws)
    assert single.calls == 2  # the second prediction was wrong
    assert averaged.calls == 2 * 7  # no mean ever was


def test_checkpoints_are_those_of_the_paper() -> None:
    start = torch.zeros(1, 1, 2, 2)
    goals, rows, within = (torch.zeros(1).long(),), torch.zeros(1).long(), L1Ball(start, torch.ones(1))
    halving = HalvingAscent(within, start, goals, rows, 0.75)
    assert list(halving.checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(halving.checkpoints(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert list(halving.checkpoints(3)) == [1, 2, 3]
    sparse = SparseAscent(within, start, goals, rows)
    assert list(sparse.checkpoints(100)) == list(range(4, 101, 4))
    assert _phases(100) == [(3.0, 30), (2.0, 30), (1.0, 40)]


def test_even_one_step_ends_in_the_ball_that_counts() -> None:
    images, labels, draws = digits.right(digits.net("standard"), 60)
    found = APGD(norm="l1", steps=1).perturb(digits.net("standard"), images, labels, 30.0, draws)
    assert (found != images).flatten(1).any(dim=1).all()


def test_a_step_is_halved_exactly_when_the_rule_of_the_paper_says_so() -> None:
    start = torch.zeros(4, 1, 1, 1)
    within = ball("linf", start, torch.full((4,), 0.5))
    ascent = HalvingAscent(within, start, (torch.zeros(4).long(),), torch.arange(4), 0.75)
    # Rises in every step; in 3 of 5; twice in 4 of 5, but below the start.
    paths = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 3, 2], [9, 1, 2, 3, 4, 5], [9, 1, 2, 3, 4, 5]]).float()
    for losses in paths.T:
        ascent.note(losses, torch.ones_like(start))
        ascent.current = ascent.current + 0.01
    ascent.review(5)
    assert ascent.step.flatten().tolist() == [1.0, 0.5, 1.0, 1.0]
    assert ascent.current.flatten().tolist() == pytest.approx([0.06, 0.03, 0.06, 0.06])
    # All rise in every step, but only the first and third above what was best.
    paths = torch.tensor([[7, 8, 9, 10, 11], [2.1, 2.2, 2.3, 2.4, 2.5], [10, 11, 12, 13, 14], [6, 7, 8, 8.1, 8.2]])
    for losses in paths.T:
        ascent.note(losses, torch.ones_like(start))
    ascent.review(5)
    assert ascent.step.flatten().tolist() == [1.0, 0.5, 1.0, 0.5]  # the second was halved last time
    assert ascent.current[3].item() == 0.0


def test_l1_projection_is_the_nearest_point_of_the_cut_ball() -> None:
    draw = generator("l1")
    centre = torch.rand(300, 1, 6, 6, generator=draw)
    centre[:100] = centre[:100].round()
    radii = torch.rand(300, generator=draw) * 6
    far = centre + torch.randn(centre.shape, generator=draw) * torch.rand(300, 1, 1, 1, generator=draw)
    within = L1Ball(centre, radii)
    near = within.project_(far.clone())
    assert within.contains(near).all()
    # Nearest, if and only if no point of the ball is further along what is left: the best such point is built greedily.
    left = (far - near).double().flatten(1)
    room = torch.where(left > 0, 1 - centre.flatten(1), centre.flatten(1)).double()
    order = left.abs().argsort(dim=1, descending=True)
    room = room.gather(1, order)
    spent = torch.minimum(room, (radii.double().unsqueeze(1) - room.cumsum(dim=1) + room).clamp(min=0))
    furthest = (spent * left.abs().gather(1, order)).sum(dim=1)
    here = (left * (near - centre).double().flatten(1)).sum(dim=1)
    assert (furthest - here).abs().max() < 1e-4
    assert int(((within.distances(near) - radii).abs() < 1e-5).sum()) > 50
    assert torch.allclose(within.project_(near.clone()), near, atol=1e-6)


def test_l1_steps_move_the_largest_gradients_alone_and_by_the_size() -> None:
    images = torch.full((3, 1, 4, 4), 0.5)
    gradient = torch.arange(1.0, 17.0).view(1, 1, 4, 4).repeat(3, 1, 1, 1)
    gradient[:, :, 3, 3] = -20.0
    gradient[2] = 0
    moved = images.clone()
    L1Ball(images, torch.full((3,), 0.4)).step_few_(moved, gradient, 0.3, torch.tensor([1, 3, 2]))
    change = (moved - images).flatten(1)
    assert change[0].nonzero().flatten().tolist() == [15]
    assert change[0, 15].item() == pytest.approx(-0.3, abs=1e-6)
    assert change[1].nonzero().flatten().tolist() == [13, 14, 15]
    assert change[1].abs().sum().item() == pytest.approx(0.3, abs=1e-6)
    assert not change[2].any()


def test_few_classes_are_put_in_words() -> None:
    assert not list(APGD().fallbacks(2))
    assert not list(APGD(loss="dlr").fallbacks(3))
    assert "3 classes" in next(APGD(loss="dlr").fallbacks(2))
    assert not list(APGDT().fallbacks(10))
    assert ["1 targets" in line or "4 classes" in line for line in APGDT().fallbacks(2)] == [True, True]


@pytest.mark.parametrize(
    "wrong", [{"loss": "hinge"}, {"rho": 1.0}, {"steps": 0}, {"eot": 0}, {"norm": "l0"}, {"restarts": 0}], ids=str
)
def test_bad_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        APGD(**wrong)
