"""Objectives that train on clean images too: MART, half-clean and interpolated adversarial training."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from tasks.budgets.fixed import Fixed
from tasks.moment import Moment
from tasks.objectives.adversarial import Iterated
from tasks.objectives.half_clean import HalfClean
from tasks.objectives.interpolated import Interpolated, symmetric_beta
from tasks.objectives.mart import MART
from tasks.objectives.pgd import PGD
from tasks.seeds import generator
from tests.tasks.training_toys import Tiny, Watch, half_mask, resumed, toy, trained

pytestmark = pytest.mark.usefixtures("one_thread")


class Affine(nn.Module):
    """A model without batch statistics, to compare with formulas."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 3, generator=generator("affine")))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ self.weight


class Logits(nn.Module):
    """A model whose logits are the first pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :3]


def batch(count: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(count, 1, 4, 4, generator=generator("images")), torch.arange(count) % 3


def watched(model: nn.Module) -> list[torch.Tensor]:
    """What the model will be shown."""
    seen: list[torch.Tensor] = []
    model.register_forward_hook(lambda _, given, __: seen.append(given[0].detach().clone()))
    return seen


def moment(seed: int = 0) -> Moment:
    return Moment(generator(seed))


def test_mart_is_the_loss_of_its_paper_and_both_branches_learn() -> None:
    (images, labels), model = batch(), Affine()
    objective = MART(epsilon=0.1, steps=3, beta=4.0)
    perturbed = objective.perturb(model, images, labels, 0.1, moment())
    found = objective.outer(model, images, perturbed, labels, moment())
    (gradient,) = torch.autograd.grad(found.loss, model.weight)

    weight = model.weight.detach().double().requires_grad_()
    p, q = ((x.double().flatten(1) @ weight).softmax(1) for x in (images, perturbed))
    rows = torch.arange(24)
    others = torch.stack([q[rows, (labels + 1) % 3], q[rows, (labels + 2) % 3]]).amax(0)
    boosted = -q[rows, labels].log() - (1.0001 - others).log()
    divergence = (p * (p / q).log()).sum(1)
    expected = (boosted + 4 * divergence * (1 - p[rows, labels])).mean()
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(gradient.double(), torch.autograd.grad(expected, weight)[0], atol=1e-5)
    assert torch.equal(found.logits, model(perturbed))


def test_the_stability_of_what_is_surely_right_does_not_count() -> None:
    labels = torch.zeros(1, dtype=torch.int64)
    attacked = torch.tensor([[0.3, 0.6, 0.1]])

    def consistency(*clean: float) -> float:
        light, heavy = (
            MART(epsilon=0.1, beta=beta).outer(Logits(), torch.tensor([clean]), attacked, labels, moment()).loss
            for beta in (1.0, 2.0)
        )
        return float(heavy - light)

    assert consistency(30.0, 0.0, 0.0) == pytest.approx(0, abs=1e-6)
    wrong = torch.tensor([0.0, 30.0, 0.0])
    divergence = F.kl_div(attacked[0].log_softmax(0), wrong.softmax(0), reduction="sum")
    assert consistency(*wrong.tolist()) == pytest.approx(divergence.item(), rel=1e-5)
    assert divergence > 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_marts_loss_of_a_surely_wrong_answer_is_finite(dtype: torch.dtype) -> None:
    images = torch.tensor([[0.0, 100.0, 0.0]], dtype=dtype)
    loss = MART(epsilon=0.1).outer(Logits(), images, images, torch.zeros(1, dtype=torch.int64), moment()).loss
    assert loss.item() == pytest.approx(100 - math.log(1e-4), rel=1e-3)


def test_mart_starts_next_to_the_image() -> None:
    (images, labels), model = batch(), Affine()
    images = images * 0.5 + 0.25
    seen = watched(model)
    perturbed = MART(epsilon=0.1, steps=2).perturb(model, images, labels, 0.1, moment())
    start = seen[0] - images
    assert start.std() == pytest.approx(1e-3, rel=0.2)
    assert (perturbed - images).abs().max() == pytest.approx(0.1, rel=1e-5)
    assert F.cross_entropy(model(perturbed), labels) > 1.1 * F.cross_entropy(model(images), labels)


def test_half_clean_is_the_mean_of_two_cross_entropies_in_one_batch() -> None:
    (images, labels), model, objective = batch(), Affine(), HalfClean(epsilon=0.1, steps=3)
    perturbed = objective.perturb(model, images, labels, 0.1, moment())
    assert torch.equal(perturbed, PGD(epsilon=0.1, steps=3).perturb(model, images, labels, 0.1, moment()))
    seen = watched(model)
    loss = objective.loss(model, images, labels, moment())
    assert torch.equal(seen[-1], torch.cat([images, perturbed]))
    assert len(seen) == 4
    clean, attacked = (F.cross_entropy(model(each), labels) for each in (images, perturbed))
    assert loss.item() == pytest.approx(((clean + attacked) / 2).item(), rel=1e-6)
    assert attacked > 1.1 * clean


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 4.0])
def test_shares_have_the_beta_distribution(alpha: float) -> None:
    chance = generator("shares", str(alpha))
    shares = torch.stack([symmetric_beta(alpha, chance) for _ in range(4000)])
    assert stats.kstest(shares.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.01
    assert stats.kstest(shares.numpy(), stats.beta(1.3 * alpha, 1.3 * alpha).cdf).pvalue < 1e-3


def test_shares_of_hardly_any_mixing_are_shares() -> None:
    shares = torch.stack([symmetric_beta(0.02, generator(seed)) for seed in range(1000)])
    assert 0 <= shares.min() < 1e-6
    assert 1 - 1e-6 < shares.max() <= 1


def test_interpolated_training_mixes_each_half_with_its_own_pairs_and_share() -> None:
    images = torch.eye(16).view(16, 1, 4, 4) * 0.5 + 0.25  # from a mixture one can read which were mixed, and how much
    labels = torch.arange(16) % 3
    model, objective = Affine(), Interpolated(epsilon=0.001, steps=2)
    seen = watched(model)
    loss = objective.loss(model, images, labels, moment(seed=2)).detach()
    perturbed, mixed = seen[-2:]
    assert all((each - images).abs().max() < 0.0011 for each in seen[:-1])  # the attack meets no mixture

    expected, shares, partners = torch.zeros(()), [], []
    for given, own in zip(mixed.chunk(2), (images, perturbed), strict=True):
        amounts = ((given - 0.25) * 2).flatten(1)
        share = float(amounts.diagonal().min())  # where no image was paired with itself
        partner = (amounts - share * torch.eye(16)).argmax(dim=1)
        assert sorted(partner.tolist()) == list(range(16))
        assert torch.allclose(given, share * own + (1 - share) * own[partner], atol=1e-2)
        logits = model(given).detach()
        expected += share * F.cross_entropy(logits, labels) + (1 - share) * F.cross_entropy(logits, labels[partner])
        shares.append(share)
        partners.append(partner)
    assert loss.item() == pytest.approx(expected.item() / 2, rel=1e-2)
    assert abs(shares[0] - shares[1]) > 0.05
    assert not torch.equal(*partners)


def test_mixing_is_what_tells_interpolated_from_half_clean() -> None:
    (images, labels), model = batch(), Affine()
    perturbed = images.flip(3)
    unmixed = Interpolated(epsilon=0.1, alpha=1e-6).outer(model, images, perturbed, labels, moment())  # shares 0 and 1
    plain = HalfClean(epsilon=0.1).outer(model, images, perturbed, labels, moment())
    assert unmixed.loss.item() == pytest.approx(plain.loss.item(), rel=1e-4)
    mixed = Interpolated(epsilon=0.1).outer(model, images, perturbed, labels, moment())
    assert mixed.loss.item() != pytest.approx(plain.loss.item(), rel=1e-2)


@pytest.mark.parametrize("family", [MART, HalfClean, Interpolated])
def test_budgets_learn_from_unmixed_perturbed_images(family: type[Iterated], monkeypatch: pytest.MonkeyPatch) -> None:
    (images, labels), model, objective = batch(), Affine(), family(epsilon=0.1, steps=3)
    learned: list[torch.Tensor] = []
    monkeypatch.setattr(Fixed, "learn", lambda _, logits, *rest: learned.append(logits))
    perturbed = objective.perturb(model, images, labels, 0.1, moment())
    objective.loss(model, images, labels, moment())
    (logits,) = learned
    assert torch.allclose(logits, model(perturbed), atol=1e-6)
    assert not logits.requires_grad


MIXED = [
    {"objective": MART(epsilon=0.1, steps=2), "architecture": Tiny(dropout=0.5, norm=True)},
    {"objective": MART(epsilon=0.1, steps=2), "precision": "bf16"},
    {"objective": HalfClean(epsilon=0.1, steps=2), "architecture": Tiny(dropout=0.5, norm=True)},
    {"objective": HalfClean(epsilon=0.1, steps=2), "precision": "bf16"},
    {"objective": Interpolated(epsilon=0.1, steps=2), "architecture": Tiny(dropout=0.5, norm=True)},
    {"objective": Interpolated(epsilon=0.1, steps=2, alpha=0.4), "precision": "bf16"},
]


@pytest.mark.parametrize("fields", MIXED, ids=str)
def test_resumed_under_a_mask_at_every_batch_it_ends_with_the_same_bytes(fields: dict[str, Any]) -> None:
    task = toy(**fields, epochs=2)
    mask = half_mask(trained(toy(architecture=task.architecture, stop_at=0)))
    straight = task.run(Watch(), mask=mask)
    assert straight.metrics["density"] < 0.6
    for saves in range(1, 13):
        assert resumed(task, [saves], {"mask": mask}) == straight, f"interrupted after step {saves}"
