"""AutoAttack agrees with its reference implementation on the same networks, and finds what PGD overlooks.

Run with `-m slow`, `HEDGEROW_DATA` naming a folder with MNIST and, for the colour network, `HEDGEROW_CIFAR10` one with
CIFAR-10 as image files, `train/<class>/` and `test/<class>/`. A quarter of an hour on one core, most of it the
reference's.
"""

from __future__ import annotations

import contextlib
import io
import os
from functools import cache
from pathlib import Path
from statistics import mean

import pytest
import torch
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.apgd import APGD
from tasks.attacks.autoattack import AutoAttack
from tasks.attacks.draws import Draws
from tasks.attacks.fgsm import FGSM
from tasks.attacks.pgd import PGD
from tasks.data import Dataset
from tasks.data.image_folder import ImageFolder
from tasks.data.mnist import Mnist
from tasks.measuring.subject import choose_examples, load_model
from tasks.models.small_cnn import SmallCNN
from tasks.objectives import Objective, pgd
from tasks.objectives.fgsm_rs import FGSMRS
from tasks.objectives.standard import Standard
from tasks.optimizers.adam import Adam
from tasks.schedules.one_cycle import OneCycle
from tasks.task import Alone
from tasks.training.train import Train
from tests.tasks.training_toys import Finished

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow, pytest.mark.timeout(3000)]

COUNT = 500
NETS: dict[str, tuple[Objective, float, int]] = {
    "standard": (Standard(), 0.05, 4),
    "fgsm-rs": (FGSMRS(epsilon=0.3), 0.3, 10),
    "pgd": (pgd.PGD(epsilon=0.1, steps=5), 0.1, 3),
    "colour": (pgd.PGD(epsilon=4 / 255, steps=3), 4 / 255, 5),
}
"""How each is trained, the radius that it is attacked at, and epochs."""
RUNS = {"colour": 2}
"""Runs with other random starts whose mean is compared, where it is not one.

Where accuracy falls steeply with epsilon, many examples are near their boundary and the starts decide: on the standard
network at 0.1, four runs of AutoAttack left 29.8 to 30.4 % here and 29.6 to 30.4 % there.
"""


def data(name: str) -> Dataset:
    variable = "HEDGEROW_CIFAR10" if name == "colour" else "HEDGEROW_DATA"
    if variable not in os.environ:
        pytest.skip(f"{variable} names no folder")
    return ImageFolder(root=Path(os.environ[variable])) if name == "colour" else Mnist(validation=1000)


@cache
def trained(name: str) -> Finished:
    objective, _, epochs = NETS[name]
    training = Train(
        data=data(name),
        architecture=SmallCNN(),
        objective=objective,
        optimizer=Adam(learning_rate=2e-3 if name in ("pgd", "colour") else 5e-3),
        schedule=OneCycle(warmup=0.4),
        epochs=epochs,
    )
    result = training.run(Alone())
    return Finished(result.metrics, result.files)


@cache
def robust(name: str, attack: Attack, run: int = 0) -> float:
    model = loaded(name)
    images, labels = chosen(name)
    perturbed = [
        attack.perturb(model, images[rows], labels[rows], NETS[name][1], Draws(run, rows))
        for rows in torch.arange(COUNT).split(128)
    ]
    return right(model, torch.cat(perturbed), labels)


def theirs(name: str, attacks: list[str], run: int) -> float:
    reference = pytest.importorskip("pyautoattack")
    model, (images, labels) = loaded(name), chosen(name)
    with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
        attack = reference.AutoAttack(model, norm="Linf", eps=NETS[name][1], version="standard", device="cpu", seed=run)
        attack.attacks_to_run = attacks
        perturbed, _ = attack.run_standard_evaluation(images, labels, batch_size=250)
    return right(model, perturbed, labels)


def loaded(name: str) -> nn.Module:
    return load_model(SmallCNN(), data(name), trained(name), "last", torch.device("cpu"))


def chosen(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    _, examples = choose_examples(data(name), "test", COUNT, 0)
    return examples.images.float() / 255, examples.labels


def right(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(dim=1) == labels).double().mean())


def compared(name: str, attack: Attack, attacks: list[str]) -> float:
    """By how much more is left standing here than by the reference."""
    runs = range(RUNS.get(name, 1))
    return mean(robust(name, attack, run) for run in runs) - mean(theirs(name, attacks, run) for run in runs)


@pytest.mark.parametrize("name", NETS)
def test_autoattack_agrees_with_the_reference(name: str) -> None:
    difference = compared(name, AutoAttack(), ["apgd-ce", "apgd-t", "fab-t", "square"])
    assert -0.006 - 1e-9 <= difference <= 0.002 + 1e-9


@pytest.mark.parametrize("name", NETS)
def test_apgd_agrees_with_the_reference(name: str) -> None:
    assert abs(compared(name, APGD(), ["apgd-ce"])) <= 0.006 + 1e-9


@pytest.mark.parametrize("name", NETS)
def test_stronger_attacks_leave_no_more_standing(name: str) -> None:
    ladder = (FGSM(), PGD(), PGD(restarts=5), AutoAttack())
    found = [robust(name, attack) for attack in ladder]
    assert found == sorted(found, reverse=True)


def test_pgd_alone_overstates_the_robustness_of_fast_training() -> None:
    gap = robust("fgsm-rs", PGD(steps=40, relative_step=1 / 30)) - robust("fgsm-rs", AutoAttack())
    assert gap > 0.05
