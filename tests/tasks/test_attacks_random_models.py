"""Against a model that draws random numbers an attack must not stop at the first lucky pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.apgd import APGD
from tasks.attacks.apgd_t import APGDT
from tasks.attacks.draws import Draws
from tasks.attacks.losses import climb, cross_entropy, weigh
from tasks.attacks.pgd import PGD
from tasks.measuring.gauge import Gauge
from tasks.measuring.robustness import decided, seeded_model
from tests.tasks import digits

PASSES = 8


class Unsure(nn.Module):
    """Two logits: how bright the image is, and noise that is often larger."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = images.flatten(1).mean(dim=1) - 0.3 + 0.3 * torch.randn(len(images))
        return 10 * torch.stack([bright, -bright], dim=1)


class Shaky(nn.Module):
    """A network whose pixels are noisy."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(images + 0.3 * torch.randn_like(images))
        return logits


@pytest.mark.parametrize(
    "attack",
    [
        PGD(steps=10, eot=PASSES),
        PGD(norm="l2", steps=10, eot=PASSES),
        APGD(steps=20, eot=PASSES),
        APGD(norm="l2", steps=20, eot=PASSES),
        APGDT(steps=20, eot=PASSES),
    ],
    ids=lambda attack: f"{attack.label()}-{attack.norm}",
)
def test_with_eot_an_attack_does_not_stop_at_the_first_mean_that_is_wrong(attack: Attack) -> None:
    radius = {"linf": 0.3, "l2": 1.2, "l1": 4.8}[attack.norm]  # makes every image darker by 0.3 on the mean, at most
    images, labels = torch.full((40, 1, 4, 4), 0.5), torch.zeros(40, dtype=torch.int64)
    with seeded_model(torch.device("cpu"), 0):
        found = attack.perturb(Unsure(), images, labels, radius, Draws(0, torch.arange(40)))
    darker = (images - found).flatten(1).mean(dim=1)
    assert darker.min() > 0.15  # where a lucky mean ends it, some images end brighter than they were


def test_what_averaged_gradients_find_holds_when_the_model_is_asked_again() -> None:
    images, labels, draws = digits.right(digits.net("fgsm-rs"), 60)
    model = Gauge(Shaky(digits.net("fgsm-rs")))
    with seeded_model(torch.device("cpu"), 0):
        found = PGD(steps=10, eot=PASSES).perturb(model, images, labels, 0.15, draws)
        votes = [decided(model, found, 20) != labels for _ in range(2)]
    assert votes[0].double().mean() > 0.3
    assert (votes[0] != votes[1]).double().mean() < 0.1


def test_weighing_is_climbing_without_a_gradient() -> None:
    images, labels, _ = digits.right(digits.net("standard"), 20)
    model = Shaky(digits.net("standard"))
    for eot in (1, 3):
        answers = []
        for ask in (climb, weigh):
            with seeded_model(torch.device("cpu"), 0):
                answers.append(ask(model, images, lambda found: cross_entropy(found, labels), eot)[:2])
        for climbed, weighed in zip(*answers, strict=True):
            assert torch.allclose(climbed, weighed, atol=1e-6)
