"""Networks trained on the embedded digits, the same in every test that attacks them."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
from torch import nn

from tasks.attacks.draws import Draws
from tasks.data import Examples
from tasks.data.mnist_mini import MnistMini
from tasks.models.small_cnn import SmallCNN
from tasks.models.weights import restore
from tasks.objectives import Objective
from tasks.objectives.pgd import PGD
from tasks.objectives.standard import Standard
from tasks.optimizers.adam import Adam
from tasks.schedules.one_cycle import OneCycle
from tasks.task import Alone
from tasks.training.train import Train

Name = Literal["standard", "fgsm-rs", "pgd"]

EPSILON: dict[Name, float] = {"standard": 0.1, "fgsm-rs": 0.2, "pgd": 0.1}
"""The L-inf radius that each network is attacked at: that of its training, for those trained adversarially."""

DATA = MnistMini(validation=1000)

_OBJECTIVES: dict[Name, Objective] = {
    "standard": Standard(),
    "fgsm-rs": PGD(epsilon=0.2, steps=1, relative_step=1.25),  # one long step from a random start (Wong et al. 2020)
    "pgd": PGD(epsilon=0.1, steps=4),
}


def training(name: Name) -> Train:
    """How a network is trained."""
    return Train(
        data=DATA,
        architecture=SmallCNN(),
        objective=_OBJECTIVES[name],
        optimizer=Adam(learning_rate=2e-3 if name == "pgd" else 5e-3),
        schedule=OneCycle(warmup=0.4),
        epochs=6 if name == "fgsm-rs" else 4,
    )


@cache
def trained_files(name: Name) -> dict[str, bytes]:
    """The files that its training leaves."""
    return training(name).run(Alone()).files


def net(name: Name) -> nn.Module:
    """The trained network in evaluation mode."""
    model = SmallCNN().build(DATA.signature())
    restore(model, trained_files(name)["weights.safetensors"])
    return model.eval().requires_grad_(False)


@cache
def test_part() -> Examples:
    return DATA.load("test")


def pixels(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first test images in [0, 1] and their labels."""
    examples = test_part()
    return examples.images[:count].float() / 255, examples.labels[:count]


def right(model: nn.Module, count: int) -> tuple[torch.Tensor, torch.Tensor, Draws]:
    """Those of the first test images that the model gets right, their labels, and draws for them."""
    images, labels = pixels(count)
    kept = (model(images).argmax(dim=1) == labels).nonzero().squeeze(1)
    return images[kept], labels[kept], Draws(0, kept)


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(dim=1) == labels).double().mean())


def step_of(name: Name) -> Any:
    """The finished training, as a task sees it."""
    from tests.tasks.attack_toys import Finished

    return Finished(**trained_files(name))
