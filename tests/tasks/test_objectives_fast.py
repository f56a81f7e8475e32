"""Objectives whose attack is one step: FGSM, free adversarial training and gradient alignment."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tasks.budgets.fixed import Fixed
from tasks.data import Signature
from tasks.moment import Moment
from tasks.objectives import Objective
from tasks.objectives.adversarial import Adversarial, Attacked
from tasks.objectives.fgsm import FGSM
from tasks.objectives.free import Free
from tasks.objectives.grad_align import GradAlign
from tasks.optimizers.sgd import SGD
from tasks.seeds import generator
from tests.tasks.training_toys import Tiny, Watch, half_mask, resumed, toy, trained

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = Signature(1, 4, 4, 3, (0.5,), (0.25,))


class Smooth(nn.Module):
    """A curved model, to compare with formulas."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 3, generator=generator("smooth"), dtype=dtype))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (2 * images.flatten(1) @ self.weight).tanh() * 3


class Masked(Smooth):
    """A model that looks away from images with a black corner."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * (images[:, 0, :1, 0] > 0)


def batch(count: int = 24, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(count, 1, 4, 4, generator=generator("images"), dtype=dtype)
    return images, torch.arange(count) % 3


def moment_of(objective: Objective, seed: int = 0) -> Moment:
    return Moment(generator(seed), memory=objective.memory(DATA, 24, 24))


def gradient_at(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    leaf = images.detach().clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(leaf), labels, reduction="sum"), leaf)[0]


@pytest.mark.parametrize("epsilon", [0.2, torch.linspace(0.01, 0.2, 24)], ids=["one", "each"])
def test_fgsm_goes_to_the_corner_that_the_gradient_points_at(epsilon: Any) -> None:
    (images, labels), model, objective = batch(), Smooth(), FGSM(epsilon=0.2)
    perturbed = objective.perturb(model, images, labels, epsilon, moment_of(objective))
    radii = torch.as_tensor(epsilon).view(-1, 1, 1, 1)
    expected = images + radii * gradient_at(model, images, labels).sign()
    assert torch.allclose(perturbed, expected.clamp(0, 1), atol=1e-7)
    loss = objective.outer(model, images, perturbed, labels, moment_of(objective)).loss
    assert torch.allclose(loss, F.cross_entropy(model(perturbed), labels))


def test_a_step_longer_than_the_radius_ends_in_the_ball() -> None:
    (images, labels), model = batch(), Smooth()
    one, two = (FGSM(epsilon=0.1, relative_step=length) for length in (1.0, 2.0))
    reached = [each.perturb(model, images, labels, 0.1, moment_of(each)) for each in (one, two)]
    assert torch.allclose(*reached, atol=1e-7)
    half = FGSM(epsilon=0.1, relative_step=0.5).perturb(model, images, labels, 0.1, moment_of(one))
    assert (half - images).abs().max() == pytest.approx(0.05, rel=1e-5)


def test_free_training_is_algorithm_1_of_its_paper() -> None:
    (images, labels), model, reference = batch(), Smooth(), Smooth()
    objective = Free(epsilon=0.15, relative_step=0.6)
    moment = moment_of(objective)
    delta = torch.zeros_like(images)
    for step in range(6):
        loss = objective.loss(model, images, labels, moment)
        loss.backward()

        seen = (images + delta).clamp(0, 1).requires_grad_()
        expected = F.cross_entropy(reference(seen), labels)
        ascent, descent = torch.autograd.grad(expected, [seen, reference.weight])
        delta = (delta + 0.6 * 0.15 * ascent.sign()).clamp(-0.15, 0.15)
        assert torch.allclose(loss, expected), step
        assert torch.allclose(moment.memory.change, delta, atol=1e-7), step
        with torch.no_grad():
            model.weight -= 0.1 * model.weight.grad
            reference.weight -= 0.1 * descent
        model.weight.grad = None
    assert delta.abs().max() == pytest.approx(0.15)


def test_free_training_pays_one_pass_and_its_attack_grows() -> None:
    (images, labels), model, objective = batch(), Smooth(), Free(epsilon=0.2)
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    moment = moment_of(objective)
    losses = []
    for _ in range(4):  # the weights stand still
        losses.append(objective.loss(model, images, labels, moment))
        losses[-1].backward()
    assert len(passes) == 4 * objective.passes()
    assert losses[-1] > losses[1] > losses[0]
    assert torch.equal(losses[0], F.cross_entropy(model(images), labels))


def test_the_perturbation_outlives_its_batch_and_short_batches_move_only_their_own_places() -> None:
    (images, labels), model, objective = batch(), Smooth(), Free(epsilon=0.2)
    moment = moment_of(objective)
    objective.loss(model, images, labels, moment).backward()
    before = moment.memory.change.clone()
    short = images[:5].flip(0)
    perturbed = objective.perturb(model, short, labels[:5], 0.2, moment)
    assert torch.equal(perturbed, (short + before[:5]).clamp(0, 1))
    F.cross_entropy(model(perturbed), 2 - labels[:5]).backward()
    assert torch.equal(moment.memory.change[5:], before[5:])
    assert not torch.equal(moment.memory.change[:5], before[:5])


def test_an_overflowing_gradient_leaves_no_trace_that_is_not_a_number() -> None:
    (images, labels), model, objective = batch(), Smooth(), Free(epsilon=0.2)
    moment = moment_of(objective)
    objective.loss(model, images, labels, moment).backward()
    before = moment.memory.change.clone()
    perturbed = objective.perturb(model, images, labels, 0.2, moment)
    overflown = torch.full_like(perturbed, torch.nan)
    overflown[:, :, 0] = torch.inf
    perturbed.backward(overflown)
    assert torch.equal(moment.memory.change[:, :, 1:], before[:, :, 1:])
    assert torch.equal(moment.memory.change[:, :, 0], (before[:, :, 0] + 0.2).clamp(-0.2, 0.2))


def test_free_training_meets_each_batch_several_times_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    moved: list[bool] = []
    outer = Free.outer

    def spy(self: Free, model: nn.Module, images: torch.Tensor, perturbed: torch.Tensor, *rest: Any) -> Attacked:
        seen.append(images)
        moved.append(not torch.equal(images, perturbed))
        return outer(self, model, images, perturbed, *rest)

    monkeypatch.setattr(Free, "outer", spy)
    task = toy(objective=Free(epsilon=0.1, replay=4), epochs=4)
    task.run(Watch())
    assert moved == [False] + [True] * 23  # what the first batch leaves, the next ones begin with
    again = [torch.equal(one, other) for one, other in pairwise(seen)]
    assert again == [step % 4 != 0 for step in range(1, 24)]
    straight, seen[:] = list(seen), []
    resumed(task, [6], {})  # in the middle of the second batch
    assert len(seen) == 24
    assert all(torch.equal(one, other) for one, other in zip(straight, seen, strict=True))


def test_gradient_alignment_is_the_loss_of_its_paper() -> None:
    (images, labels), model, objective = (
        batch(dtype=torch.float64),
        Smooth(torch.float64),
        GradAlign(epsilon=0.2, weight=3.0),
    )
    seen: list[torch.Tensor] = []
    hook = model.register_forward_hook(lambda _, given, __: seen.append(given[0].detach()))
    loss = objective.loss(model, images, labels, moment_of(objective))
    hook.remove()
    (found,) = torch.autograd.grad(loss, model.weight)
    original, perturbed, nearby = seen
    assert torch.equal(original, images)
    first = gradient_at(model, images, labels)  # a constant: the authors send the graph through the other one
    assert torch.allclose(perturbed, (images + 0.2 * first.sign()).clamp(0, 1))
    assert 0.19 < (nearby - images).abs().max() <= 0.2
    assert nearby.min() < 0  # not cut
    assert nearby.max() > 1

    def loss_at(weight: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            moved = Smooth(torch.float64)
            moved.weight.copy_(weight)
        second = gradient_at(moved, nearby, labels)
        cosine = F.cosine_similarity(first.flatten(1), second.flatten(1))
        return F.cross_entropy(moved(perturbed), labels) + 3 * (1 - cosine).mean()

    assert loss.item() == pytest.approx(loss_at(model.weight.detach()).item(), rel=1e-6)
    for index in [(0, 0), (7, 1), (15, 2)]:
        nudge = torch.zeros_like(model.weight)
        nudge[index] = 1e-5
        slope = (loss_at(model.weight + nudge) - loss_at(model.weight - nudge)) / 2e-5
        assert found[index].item() == pytest.approx(slope.item(), rel=1e-4, abs=1e-7)


def test_alignment_looks_no_further_than_the_radius_of_each_image() -> None:
    (images, labels), model, objective = batch(), Smooth(), GradAlign(epsilon=0.2)
    radii = torch.linspace(0.02, 0.2, 24)
    perturbed = objective.perturb(model, images, labels, radii, moment_of(objective))
    seen: list[torch.Tensor] = []
    model.register_forward_hook(lambda _, given, __: seen.append(given[0].detach()))
    objective.outer(model, images, perturbed, labels, moment_of(objective))
    reached = (seen[-1] - images).flatten(1).abs().amax(dim=1)
    assert (reached <= radii + 1e-6).all()
    assert (reached > 0.6 * radii).all()


def test_images_without_a_gradient_do_not_count() -> None:
    (images, labels), objective = batch(), GradAlign(epsilon=0.01, weight=1.0)
    images[:, 0, 0, 0] = 0.5

    def term(images: torch.Tensor) -> tuple[float, torch.Tensor]:
        model = Masked()
        loss = objective.loss(model, images, labels[: len(images)], moment_of(objective))
        plain = FGSM(epsilon=0.01).loss(model, images, labels[: len(images)], moment_of(objective))
        (gradient,) = torch.autograd.grad(loss - plain, model.weight)
        return (loss - plain).item(), gradient

    some = images.clone()
    some[12:, 0, 0, 0] = -1.0
    counted, gradient = term(images[:12])
    diluted, same = term(some)
    assert counted > 1e-4
    assert diluted == pytest.approx(counted, rel=1e-2)
    assert torch.allclose(gradient, same, rtol=1e-2, atol=1e-5)
    some[:, 0, 0, 0] = -1.0
    nothing, zero = term(some)
    assert nothing == 0
    assert not zero.any()


def test_a_model_whose_gradient_never_turns_costs_nothing() -> None:
    class Straight(Smooth):
        def forward(self, images: torch.Tensor) -> torch.Tensor:  # two classes: one direction
            score = images.flatten(1) @ self.weight[:, 0]
            return torch.stack([score, -score], dim=1)

    images, labels = batch()
    losses = [
        each.loss(Straight(), images, labels % 2, moment_of(each))
        for each in (FGSM(epsilon=0.2), GradAlign(epsilon=0.2, weight=10.0))
    ]
    assert torch.allclose(*losses, atol=1e-5)


def test_what_is_trained_with_the_term_has_gradients_that_turn_less() -> None:
    images, labels = batch()
    turned = []
    for weight in (0.0, 1.0, 5.0):
        model, objective = Smooth(), GradAlign(epsilon=0.3, weight=weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        for step in range(150):
            optimizer.zero_grad()
            objective.loss(model, images, labels, moment_of(objective, step)).backward()
            optimizer.step()
        nearby = images + torch.empty_like(images).uniform_(-0.3, 0.3, generator=generator("nearby"))
        pair = [gradient_at(model, each, labels).flatten(1) for each in (images, nearby)]
        turned.append(1 - F.cosine_similarity(*pair).mean().item())
    assert turned[2] < 0.5 * turned[1] < 0.25 * turned[0]


def test_one_gradient_serves_step_and_term() -> None:
    (images, labels), model, objective = batch(), Smooth(), GradAlign(epsilon=0.2)
    apart = objective.perturb(model, images, labels, 0.2, moment_of(objective))
    found = objective.outer(model, images, apart, labels, moment_of(objective))
    count: list[int] = []
    model.register_forward_hook(lambda *_: count.append(1))
    assert torch.equal(objective.loss(model, images, labels, moment_of(objective)), found.loss)
    assert len(count) == 3


def test_alignment_of_weight_zero_is_fgsm_bit_for_bit() -> None:
    fields = {"architecture": Tiny(dropout=0.3, norm=True)}
    plain, aligned, strong = (
        trained(toy(objective=objective, **fields)).metrics["digest"]
        for objective in (FGSM(epsilon=0.1), GradAlign(epsilon=0.1, weight=0), GradAlign(epsilon=0.1, weight=1))
    )
    assert plain == aligned != strong


@pytest.mark.parametrize(
    "objective", [FGSM(epsilon=0.2), Free(epsilon=0.2), GradAlign(epsilon=0.2)], ids=lambda each: each.kind
)
def test_budgets_learn_from_the_logits_of_perturbed_images(
    objective: Adversarial, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images, labels), model = batch(), Smooth()
    learned: list[torch.Tensor] = []
    monkeypatch.setattr(Fixed, "learn", lambda _, logits, *rest: learned.append(logits))
    moment = moment_of(objective)
    for _ in range(2):  # free training begins with nothing
        perturbed = objective.perturb(model, images, labels, 0.2, moment).detach()
        objective.loss(model, images, labels, moment).backward()
    assert torch.equal(learned[-1], model(perturbed).detach())
    assert len(learned) == 2
    assert not torch.equal(learned[-1], model(images))


FAST = [
    {"objective": FGSM(epsilon=0.1), "architecture": Tiny(dropout=0.5, norm=True)},
    {"objective": Free(epsilon=0.1, replay=4), "architecture": Tiny(dropout=0.5, norm=True)},
    {"objective": Free(epsilon=0.1, replay=4), "precision": "bf16", "augmentation": "crop-flip"},
    {"objective": Free(epsilon=0.1, replay=4), "precision": "fp16", "optimizer": SGD(learning_rate=0.0025)},
    {"objective": GradAlign(epsilon=0.1), "architecture": Tiny(dropout=0.5, norm=True)},
    {"objective": GradAlign(epsilon=0.1), "precision": "bf16"},
]


@pytest.mark.parametrize("fields", FAST, ids=str)
def test_resumed_under_a_mask_at_every_batch_it_ends_with_the_same_bytes(fields: dict[str, Any]) -> None:
    task = toy(**fields, epochs=2)
    mask = half_mask(trained(toy(architecture=task.architecture, stop_at=0)))
    straight = task.run(Watch(), mask=mask)
    assert straight.metrics["density"] < 0.6
    for saves in range(1, 13):
        assert resumed(task, [saves], {"mask": mask}) == straight, f"interrupted after step {saves}"
