"""Objectives compute the losses of their papers and leave the model's mode and statistics alone."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from tasks.attacks import pgd
from tasks.attacks.draws import Draws
from tasks.moment import Moment
from tasks.objectives import Objective
from tasks.objectives.adversarial import Adversarial
from tasks.objectives.fgsm import FGSM
from tasks.objectives.fgsm_rs import FGSMRS
from tasks.objectives.free import Free
from tasks.objectives.grad_align import GradAlign
from tasks.objectives.half_clean import HalfClean
from tasks.objectives.interpolated import Interpolated
from tasks.objectives.mart import MART
from tasks.objectives.pgd import PGD
from tasks.objectives.standard import Standard
from tasks.objectives.trades import TRADES
from tasks.seeds import generator
from tests.tasks.attack_toys import EPSILON, SmallNet, TwoFeatures, accuracy, pixels, trained

ADVERSARIAL: list[Adversarial] = [
    PGD(epsilon=EPSILON, steps=4),
    PGD(epsilon=0.5, steps=4, norm="l2"),
    TRADES(epsilon=EPSILON, steps=4),
    FGSMRS(epsilon=EPSILON),
    FGSM(epsilon=EPSILON),
    Free(epsilon=EPSILON),
    GradAlign(epsilon=EPSILON),
    MART(epsilon=EPSILON, steps=4),
    MART(epsilon=0.5, steps=4, norm="l2"),
    HalfClean(epsilon=EPSILON, steps=4),
    Interpolated(epsilon=EPSILON, steps=4),
]
DRAWING_NOTHING = (Standard, FGSM, Free)


def fresh(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallNet().build(TwoFeatures().signature()).train()


def moment_of(objective: Objective, seed: int = 0) -> Moment:
    return Moment(generator(seed), memory=objective.memory(TwoFeatures().signature(), 768, 64))


def gradients(objective: Objective, model: nn.Module, seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    images, labels = pixels()
    loss = objective.loss(model, images[:64], labels[:64], moment_of(objective, seed))
    return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters())))


def test_label_smoothing_spreads_probability_over_all_classes() -> None:
    images, labels = pixels()
    model = fresh().eval()
    log_p = model(images).log_softmax(1)
    expected = -(0.9 * log_p[torch.arange(len(labels)), labels] + 0.1 * log_p.mean(1)).mean()
    loss = Standard(label_smoothing=0.1).loss(model, images, labels, Moment(generator(0)))
    assert torch.allclose(loss, expected, atol=1e-6)


def test_trades_without_beta_is_standard_training_bit_for_bit() -> None:
    standard, trades = trained(Standard(), epochs=2), trained(TRADES(epsilon=EPSILON, beta=0), epochs=2)
    for name, value in standard.state_dict().items():
        assert torch.equal(value, trades.state_dict()[name]), name


class Affine(nn.Module):
    """A model without batch statistics, to compare with formulas."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 3, generator=generator("affine"), dtype=dtype))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ self.weight


def test_the_gradient_of_trades_flows_through_both_branches() -> None:
    images, labels = pixels()
    images, labels = images[:16].double(), labels[:16]
    model, objective = Affine(torch.float64), TRADES(epsilon=0.02, steps=3, beta=4.0)
    (gradient,) = torch.autograd.grad(objective.loss(model, images, labels, Moment(generator(0))), model.weight)

    # The attacked images, found once more by finite means: they are fixed while the loss is differentiated.
    seen: list[torch.Tensor] = []
    handle = model.register_forward_hook(lambda _, given, __: seen.append(given[0].detach()))
    objective.loss(model, images, labels, Moment(generator(0)))
    handle.remove()
    perturbed = seen[-1]
    assert not torch.equal(perturbed, images)

    @torch.no_grad()
    def loss_at(weight: torch.Tensor) -> torch.Tensor:
        p = (images.flatten(1) @ weight).softmax(1)
        q = (perturbed.flatten(1) @ weight).softmax(1)
        natural = -p[torch.arange(16), labels].log().mean()
        return natural + 4.0 * (p * (p / q).log()).sum(1).mean()

    for index in [(0, 0), (17, 1), (63, 2)]:
        nudge = torch.zeros_like(model.weight)
        nudge[index] = 1e-5
        slope = (loss_at(model.weight + nudge) - loss_at(model.weight - nudge)) / 2e-5
        assert float(gradient[index]) == pytest.approx(float(slope), rel=1e-5, abs=1e-9)


def test_trades_attacks_the_divergence_and_not_the_label() -> None:
    images, _ = pixels()
    model, objective = Affine(), TRADES(epsilon=0.02, steps=5)
    seen: list[torch.Tensor] = []
    model.register_forward_hook(lambda _, given, __: seen.append(given[0].detach()))
    for labels in (torch.zeros(300, dtype=torch.int64), torch.ones(300, dtype=torch.int64)):
        objective.loss(model, images, labels, Moment(generator(0)))
    assert torch.equal(seen[len(seen) // 2 - 1], seen[-1])

    def divergence(other: torch.Tensor) -> torch.Tensor:
        return F.kl_div(model(other).log_softmax(1), model(images).softmax(1), reduction="batchmean")

    noise = images + 0.02 * torch.rand(images.shape, generator=generator(1)).sub(0.5).sign()
    assert divergence(seen[-1]) > 3 * divergence(noise.clamp(0, 1))


def test_madrys_loss_is_the_cross_entropy_on_attacked_images_alone() -> None:
    images, labels = pixels()
    model, objective = Affine(), PGD(epsilon=0.02, steps=5)
    loss = objective.loss(model, images, labels, Moment(generator(0))).detach()
    assert loss > 1.1 * F.cross_entropy(model(images), labels)
    seen: list[torch.Tensor] = []
    model.register_forward_hook(lambda _, given, __: seen.append(given[0].detach()))
    objective.loss(model, images, labels, Moment(generator(0)))
    assert len(seen) == objective.passes()
    assert torch.allclose(loss, F.cross_entropy(model(seen[-1]), labels))
    assert (seen[-1] - images).abs().max() <= 0.02 + 1e-6


def test_fast_training_starts_anywhere_in_the_ball_and_ends_where_images_may_be() -> None:
    seen: list[torch.Tensor] = []

    class Watched(Affine):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images.detach().clone())
            return super().forward(images)

    images = torch.rand((50, 1, 8, 8), generator=generator("fast")).round()  # black and white
    labels = torch.zeros(50, dtype=torch.int64)
    model = Watched()
    loss = FGSMRS(epsilon=0.3).loss(model, images, labels, Moment(generator(0)))
    start, end = seen
    assert -0.3 <= start.min() < -0.29  # below black: half of the randomness would be lost if it were cut
    assert 1.29 < start.max() <= 1.3
    assert 0 <= end.min() <= end.max() <= 1
    assert (end - images).abs().max() <= 0.3 + 1e-6
    (gradient,) = torch.autograd.grad(F.cross_entropy(Affine()(leaf := start.requires_grad_()), labels), leaf)
    change = (start.detach() - images + 0.375 * gradient.sign()).clamp(-0.3, 0.3)
    assert torch.allclose(end, (images + change).clamp(0, 1), atol=1e-6)
    assert torch.allclose(loss, F.cross_entropy(Affine()(end), labels))


@pytest.mark.parametrize("objective", ADVERSARIAL, ids=str)
def test_crafting_leaves_batch_statistics_and_gradients_alone(objective: Objective) -> None:
    model, reference = fresh(), fresh()
    gradients(objective, model)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    forwards = 2 if isinstance(objective, TRADES | MART) else 1  # the loss itself sees the batch in training mode
    assert int(model.body[1].num_batches_tracked) == forwards
    assert not torch.equal(model.body[1].running_mean, reference.body[1].running_mean)


@pytest.mark.parametrize("objective", ADVERSARIAL, ids=str)
def test_every_image_has_the_radius_that_it_was_given(objective: Adversarial) -> None:
    images, labels = (part[:64] for part in pixels())
    radii = torch.linspace(0, objective.epsilon, 64)
    memory = objective.memory(TwoFeatures().signature(), 768, 64)
    for buffer in memory.buffers():
        buffer.uniform_(-1, 1, generator=generator("memory"))
    moment = Moment(generator(0), memory=memory)
    perturbed = objective.perturb(fresh(), images, labels, radii, moment).detach()
    reached = (perturbed - images).flatten(1).norm(p=torch.inf if objective.norm == "linf" else 2, dim=1)
    assert (reached <= radii + 1e-6).all()
    assert (reached > 0.6 * radii)[1:].all()
    assert 0 <= perturbed.min() <= perturbed.max() <= 1


@pytest.mark.parametrize("objective", ADVERSARIAL, ids=str)
def test_one_radius_for_all_is_that_radius_for_each(objective: Adversarial) -> None:
    images, labels = (part[:64] for part in pixels())
    both = [
        objective.perturb(fresh(), images, labels, epsilon, moment_of(objective)).detach()
        for epsilon in (0.07, torch.full((64,), 0.07))
    ]
    assert torch.allclose(*both, atol=1e-6)


def test_modules_that_were_frozen_stay_frozen() -> None:
    model = fresh()
    model.body[1].eval()
    before = model.body[1].running_mean.clone()
    gradients(PGD(epsilon=EPSILON), model)
    assert not model.body[1].training
    assert model.body[0].training
    assert torch.equal(model.body[1].running_mean, before)


@pytest.mark.parametrize("objective", [*ADVERSARIAL, Standard()], ids=str)
def test_equal_generators_give_equal_bytes_whatever_the_global_one_does(objective: Objective) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        before = torch.random.get_rng_state()
        loss, first = gradients(objective, fresh())
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(2)
        again, second = gradients(objective, fresh())
    assert torch.equal(loss, again)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    if not isinstance(objective, DRAWING_NOTHING):
        other, _ = gradients(objective, fresh(), seed=1)
        assert not torch.equal(loss, other)


def test_beta_trades_accuracy_for_stability() -> None:
    images, labels = pixels()
    standing = []
    for beta in (0.0, 6.0):
        net = trained(TRADES(epsilon=EPSILON, steps=4, beta=beta), epochs=6)
        perturbed = pgd.PGD(steps=10).perturb(net, images, labels, EPSILON, Draws(0, torch.arange(len(images))))
        standing.append((accuracy(net, images, labels), accuracy(net, perturbed, labels)))
    assert standing[0][0] >= standing[1][0]
    assert standing[0][1] < 0.05
    assert standing[1][1] > 0.8


@pytest.mark.parametrize(
    ("objective", "passes"),
    [
        (Standard(), 1),
        (PGD(epsilon=0.1, steps=7), 8),
        (FGSMRS(epsilon=0.1), 2),
        (TRADES(epsilon=0.1, steps=10), 12),
        (TRADES(epsilon=0.1, steps=10, beta=0), 1),
        (FGSM(epsilon=0.1), 2),
        (Free(epsilon=0.1, replay=8), 1),
        (GradAlign(epsilon=0.1), 4),
        (GradAlign(epsilon=0.1, weight=0), 2),
        (MART(epsilon=0.1, steps=10), 12),
        (HalfClean(epsilon=0.1, steps=7), 9),
        (Interpolated(epsilon=0.1, steps=7), 9),
    ],
    ids=str,
)
def test_the_cost_counts_the_inner_attack(objective: Objective, passes: int) -> None:
    assert objective.passes() == passes


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        (PGD, {}),
        (PGD, {"epsilon": 0}),
        (PGD, {"epsilon": 1.5}),
        (PGD, {"epsilon": 0.1, "steps": 0}),
        (TRADES, {"epsilon": 0.1, "beta": -1}),
        (FGSM, {"epsilon": 0.1, "norm": "l2"}),
        (Free, {"epsilon": 0.1, "norm": "l2"}),
        (Free, {"epsilon": 0.1, "replay": 0}),
        (GradAlign, {"epsilon": 0.1, "norm": "l2"}),
        (GradAlign, {"epsilon": 0.1, "weight": -1}),
        (MART, {"epsilon": 0.1, "beta": 0}),
        (Interpolated, {"epsilon": 0.1, "alpha": 0}),
        (Standard, {"label_smoothing": 1}),
    ],
    ids=str,
)
def test_values_out_of_bounds_do_not_validate(family: type[Objective], fields: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        family.model_validate(fields)


def test_a_euclidean_radius_may_exceed_one() -> None:
    assert PGD(epsilon=1.5, norm="l2").epsilon == 1.5
