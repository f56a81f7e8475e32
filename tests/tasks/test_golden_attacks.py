"""Golden results of attacks, corruptions and evaluations, under the rules of `test_golden`."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.draws import Draws
from tasks.attacks.fgsm import FGSM
from tasks.attacks.pgd import PGD
from tasks.component import members
from tasks.corruptions import Corruption
from tasks.data import Signature
from tasks.data.mnist_mini import MnistMini
from tasks.measuring.evaluate import Evaluate
from tasks.models import Architecture
from tasks.models.network import Network
from tasks.models.weights import weights_to_bytes
from tasks.seeds import generator
from tasks.task import Alone
from tests.tasks.test_golden import digest, near, one_thread, unchanged  # noqa: F401 - the fixture is used by name
from tests.tasks.training_toys import Finished

SHORT: dict[str, Any] = {"steps": 4, "queries": 50, "targets": 2, "searches": 3, "points": 5}

ATTACKS: dict[str, list[float]] = {
    "apgd linf": [0.0468645, -36.1771],
    "apgd l2": [0.0186019, -26.0577],
    "apgd l1": [0.0102041, -34.9451],
    "apgd-t linf": [0.0454005, -24.5483],
    "apgd-t l2": [0.0186515, -11.5255],
    "apgd-t l1": [0.0102041, -41.8182],
    "cw l2": [0.000474134, -0.0876764],
    "ddn l2": [0.0120451, -16.3424],
    "deepfool l2": [0.00488658, -8.96879],
    "deepfool linf": [0.00733708, -6.28371],
    "fab linf": [0.00815572, -6.91812],
    "fab l2": [0.00524483, -10.0881],
    "fab l1": [0.00233379, -5.32157],
    "fab-t linf": [0.0087871, -15.8863],
    "fab-t l2": [0.00561665, -15.9542],
    "fab-t l1": [0.00252779, -20.7535],
    "fgsm linf": [0.0560864, -33.5784],
    "fgsm l2": [0.0165628, -12.5787],
    "fgsm-rs linf": [0.0548554, -39.1543],
    "fgsm-rs l2": [0.0207228, -17.7821],
    "fmn linf": [0.00713375, -12.2647],
    "fmn l2": [0.00510261, -15.1665],
    "fmn l1": [0.0031853, -19.8063],
    "fmn l0": [0.000377781, 0.246019],
    "krylov linf": [0.0375485, -30.0373],
    "krylov l2": [0.0113934, -11.5468],
    "mi-fgsm linf": [0.0138049, -17.0745],
    "mi-fgsm l2": [0.00671445, -15.5399],
    "pgd linf": [0.0454069, -41.5245],
    "pgd l2": [0.0196097, -14.0718],
    "random-noise linf": [0.0279064, -16.0269],
    "random-noise l2": [0.0159466, 1.06743],
    "random-noise l1": [0.0102041, 14.9498],
    "sigma-zero l0": [0.00848214, -20.0],
    "square linf": [0.0586884, 29.6863],
    "square l2": [0.015133, -7.24672],
    "square l1": [0.00945484, -31.4607],
}
"""For each attack and norm, by how much 200 digits change on average, and which way."""

CORRUPTIONS: dict[str, float] = {
    "brightness": 35.2627,
    "contrast": 29.8767,
    "defocus-blur": 6.46508,
    "elastic-transform": 17.7232,
    "fog": 52.9392,
    "frost": 55.909,
    "gaussian-blur": 8.60546,
    "gaussian-noise": 8.85097,
    "glass-blur": 14.2219,
    "impulse-noise": 3.87003,
    "jpeg-compression": 3.46936,
    "motion-blur": 18.0185,
    "pixelate": 4.99949,
    "saturate": 0.0,
    "shot-noise": 2.16577,
    "snow": 20.1865,
    "spatter": 19.7334,
    "speckle-noise": 2.15605,
    "zoom-blur": 15.4078,
}
"""For each corruption, by how many levels pixels change on average at severity 3."""


class Wide(Architecture):
    """A hidden layer of random signs, and a linear layer that scores the nearest class mean behind it."""

    kind: Literal["golden-wide"] = "golden-wide"

    def build(self, data: Signature) -> nn.Module:
        output = nn.Linear(64, data.classes)
        return Network(data, nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), output), output)


@pytest.fixture(scope="module")
def wide() -> nn.Module:
    """A network that was never trained and yet classifies digits, the same one on every machine."""
    data = MnistMini(validation=0, subset=1000)
    examples = data.load("train")
    with torch.random.fork_rng(devices=[]):
        model = Wide().build(data.signature())
    hidden, output = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
    hidden.weight.data = (torch.randint(2, (64, 784), generator=generator("signs")) * 2 - 1) / 28.0
    hidden.bias.data.zero_()
    features = (((examples.images / 255.0).flatten(1) - 0.1307) / 0.3082) @ hidden.weight.data.T
    means = torch.stack([features.relu()[examples.labels == label].mean(dim=0) for label in range(10)])
    output.weight.data = means.detach()
    output.bias.data = -means.square().sum(dim=1) / 2
    return model.eval().requires_grad_(False)


RADIUS = {"linf": 0.1, "l2": 1.0, "l1": 8.0, "l0": 10.0}


def briefly(name: str) -> Attack:
    kind, norm = name.rsplit(" ", 1)
    member = members(Attack)[kind]
    return member(norm=norm, **{field: value for field, value in SHORT.items() if field in member.model_fields})


@pytest.mark.parametrize("name", ATTACKS)
def test_perturbations_are_as_recorded(wide: nn.Module, name: str) -> None:
    attack = briefly(name)
    unchanged(changes(wide, attack), near(ATTACKS[name], 0.01), type(attack))


def changes(model: nn.Module, attack: Attack) -> list[float]:
    examples = MnistMini().load("test")
    images, labels = examples.images[:200] / 255.0, examples.labels[:200]
    change = attack.perturb(model, images, labels, RADIUS[attack.norm], Draws(0, torch.arange(200))) - images
    # The length is nearly epsilon whatever an attack does; where it points is not.
    compass = torch.randint(2, change.shape, generator=generator("compass")) * 2 - 1
    return [change.abs().mean().item(), (change * compass).sum().item()]


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruptions_are_as_recorded(kind: str) -> None:
    corruption = members(Corruption)[kind]()
    unchanged(levels(corruption), near(CORRUPTIONS[kind]), type(corruption))


def levels(corruption: Corruption) -> float:
    images = MnistMini().load("test").images[:50]
    corrupted = corruption.corrupt(images, 3, Draws(0, torch.arange(50)))
    return (corrupted.float() - images.float()).abs().mean().item()


def test_an_evaluation_finds_what_is_recorded(wide: nn.Module) -> None:
    content = weights_to_bytes(wide)
    result = Evaluate(
        data=MnistMini(),
        architecture=Wide(),
        attacks=(PGD(steps=2), FGSM()),
        epsilons=(0.01, 0.02, 0.05),
        examples=400,
        seed=3,
    ).run(Alone(), trained=Finished({}, {"weights.safetensors": content}))
    outcomes = load(result.files["outcomes.safetensors"])
    unchanged(digest(outcomes["indices"], outcomes["labels"]), "a0d039c7d0f25c79", Evaluate)
    unchanged(
        [level["broken_by"] for level in result.metrics["robust"]],
        [{"pgd": 65, "fgsm": 0}, {"pgd": 47, "fgsm": 0}, {"pgd": 127, "fgsm": 2}],
        Evaluate,
        PGD,
        FGSM,
    )
    unchanged(digest(outcomes["broken_by"], outcomes["broken_at"]), "187cd966c3032a2d", Evaluate, PGD, FGSM)
    unchanged(
        result.metrics["clean"],
        near(
            {
                "accuracy": 0.66,
                "loss": 1.04829,
                "nll": 1.04829,
                "ece": 0.0993803,
                "confidence": 0.570903,
                "low": 0.611274,
                "high": 0.706338,
            }
        ),
        Evaluate,
    )
