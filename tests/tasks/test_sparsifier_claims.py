"""What pruning during training is for: thresholding costs little then, and learned masks beat magnitude."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from tasks.attacks import pgd
from tasks.attacks.draws import Draws
from tasks.data import Dataset
from tasks.data.mnist import Mnist
from tasks.data.mnist_mini import MnistMini
from tasks.models.lenet import LeNet300100
from tasks.models.weights import load_weights, restore
from tasks.objectives import Objective
from tasks.objectives.pgd import PGD
from tasks.objectives.standard import Standard
from tasks.optimizers.adam import Adam
from tasks.optimizers.sgd import SGD
from tasks.pruning.hydra import Hydra
from tasks.pruning.mask import Mask
from tasks.pruning.prune import Prune
from tasks.pruning.sparsifiers import Sparsifier
from tasks.pruning.sparsifiers.admm import ADMM
from tasks.pruning.sparsifiers.gradual import Gradual
from tasks.pruning.sparsifiers.lagrangian_dual import LagrangianDual
from tasks.schedules.cosine import Cosine
from tasks.schedules.one_cycle import OneCycle
from tasks.training.train import Train
from tests.tasks.digits import accuracy
from tests.tasks.training_toys import Finished, trained

pytestmark = pytest.mark.usefixtures("one_thread")

MINI = MnistMini(validation=500, subset=4000)
needs_mnist = pytest.mark.skipif("HEDGEROW_DATA" not in os.environ, reason="HEDGEROW_DATA names no folder with MNIST")
EPSILON = 0.1


def training(data: Dataset, epochs: int, rate: float, **fields: Any) -> Train:
    """LeNet-300-100 with momentum on a cosine; what starts from weights starts a schedule of its own."""
    return Train(
        **{
            "data": data,
            "architecture": LeNet300100(),
            "optimizer": SGD(learning_rate=rate, momentum=0.9),
            "schedule": Cosine(),
            "epochs": epochs,
            "schedule_from": "zero",
            "batch_size": 64,
            "validate_every": 100,
            **fields,
        }
    )


def pruned(step: Finished, density: float, scope: str = "global") -> Finished:
    """The mask of magnitude pruning."""
    return trained(Prune.model_validate({"density": density, "scope": scope}), trained=step)


def standing(data: Dataset, step: Finished, mask: Finished | None = None, epsilon: float = 0) -> float:
    """Accuracy on test images in percent, under the mask if there is one, under PGD-20 if there is a radius."""
    model = LeNet300100().build(data.signature())
    restore(model, step.read("weights.safetensors"))
    if mask is not None:
        Mask.from_bytes(mask.read("mask.safetensors")).apply_(model)
    model.eval().requires_grad_(False)
    test = data.load("test")
    images, labels = test.images[:2000].float() / 255, test.labels[:2000]
    if epsilon:
        images = pgd.PGD(steps=20).perturb(model, images, labels, epsilon, Draws(0, torch.arange(len(labels))))
    return 100 * accuracy(model, images, labels)


def outside(step: Finished, mask: Finished) -> float:
    """The squared mass of the weights that a mask prunes."""
    kernels = load_weights(step.read("weights.safetensors")).kernels()
    kept = Mask.from_bytes(mask.read("mask.safetensors"))
    return sum(float(kernel[~kept[name]].double().square().sum()) for name, kernel in kernels.items())


def thresholding(data: Dataset, sparsifier: Sparsifier, density: float, epochs: int) -> dict[str, float]:
    """What pruning costs a trained network, in points: at once, and after more training with and without sparsifier."""
    dense = trained(training(data, epochs, 0.1))
    plain = trained(training(data, epochs, 0.03), start=dense)
    ready = trained(training(data, epochs, 0.03, sparsifier=sparsifier), start=dense)
    steps = {"at once": dense, "plain": plain, "ready": ready}
    cost = {name: standing(data, step) - standing(data, step, pruned(step, density)) for name, step in steps.items()}
    left = outside(ready, pruned(ready, density)) / outside(dense, pruned(dense, density))
    return cost | {"left": left, "change": standing(data, ready) - standing(data, dense)}


@pytest.mark.parametrize(
    "sparsifier",
    [ADMM(density=0.05, rho=0.03, growth=1.5), LagrangianDual(density=0.05, rate=0.3)],
    ids=lambda given: given.kind,
)
def test_thresholding_costs_little_once_the_weights_were_told(sparsifier: Sparsifier) -> None:
    """Measured, in points: at once 6.3, after as much training without a sparsifier 6.5, with ADMM 1.0, dual 0.5."""
    found = thresholding(MINI, sparsifier, 0.05, epochs=6)
    assert found["left"] < 0.01, found
    assert found["ready"] < 1.5, found
    assert found["at once"] - found["ready"] >= 3, found
    assert found["plain"] - found["ready"] >= 3, found
    assert found["change"] > -3, found


@pytest.mark.slow
@needs_mnist
@pytest.mark.parametrize(
    "sparsifier", [ADMM(density=0.1, rho=0.03, growth=1.5), LagrangianDual(density=0.1)], ids=lambda given: given.kind
)
def test_thresholding_to_a_tenth_on_mnist_costs_less_than_a_point(sparsifier: Sparsifier) -> None:
    """Measured, in points: at once 3.2, with ADMM 0.05, with the dual 0."""
    found = thresholding(Mnist(subset=12_000), sparsifier, 0.1, epochs=8)
    assert found["left"] < 0.01, found
    assert found["ready"] < 1, found
    assert found["at once"] > found["ready"], found


def gradually(data: Dataset, density: float, epochs: int) -> dict[str, float]:
    """Test accuracy of one training that prunes, of a dense one, and of that one pruned at once."""
    dense = trained(training(data, epochs, 0.1))
    sparse = trained(training(data, epochs, 0.1, sparsifier=Gradual(density=density, every=10)))
    mask = pruned(dense, density)
    return {
        "dense": standing(data, dense),
        "at once": standing(data, dense, mask),
        "gradual": standing(data, sparse),
    }


def test_a_training_that_prunes_itself_to_three_percent_stays_near_the_dense_one() -> None:
    """Two seeds: 92.9 and 92.0 % against 94.2 and 94.7 dense, 77.4 and 83.0 pruned at once."""
    found = gradually(MINI, 0.03, epochs=4)
    assert found["gradual"] >= found["dense"] - 4, found
    assert found["gradual"] - found["at once"] >= 6, found


@pytest.mark.slow
@needs_mnist
def test_a_training_on_mnist_that_prunes_itself_to_three_percent_stays_near_the_dense_one() -> None:
    """Measured: 97.4 % against 97.2 dense, 74.6 pruned at once."""
    found = gradually(Mnist(), 0.03, epochs=6)
    assert found["gradual"] >= found["dense"] - 1.5, found
    assert found["gradual"] - found["at once"] >= 3, found


def choices(data: Dataset, objective: Objective, epsilon: float, epochs: int, batch_size: int) -> dict[str, float]:
    """Accuracy at 3 % density: magnitude as it is and fine-tuned, and HYDRA's masks on weights that never moved."""
    common: dict[str, Any] = {"objective": objective, "batch_size": batch_size}
    dense = trained(
        training(data, epochs, 0.1, **common, optimizer=Adam(learning_rate=2e-3), schedule=OneCycle(warmup=0.4))
    )
    magnitude = pruned(dense, 0.03, "uniform")
    search = Hydra(
        data=data,
        architecture=LeNet300100(),
        density=0.03,
        optimizer=SGD(learning_rate=0.1, momentum=0.9),
        schedule=Cosine(),
        epochs=epochs,
        **common,
    )
    chosen = trained(search, trained=dense)
    tuned = trained(training(data, epochs, 0.01, **common), start=dense, mask=magnitude)
    return {
        "dense": standing(data, dense, epsilon=epsilon),
        "tuned": standing(data, tuned, epsilon=epsilon),
        "magnitude": standing(data, dense, magnitude, epsilon),
        "hydra": standing(data, chosen, epsilon=epsilon),
    }


def test_learned_scores_choose_better_weights_than_magnitude() -> None:
    """Measured: 57.3 % against 11.7; fine-tuning the magnitude mask for as long gives 58.2 at 0.01 and 91.6 at 0.1."""
    found = choices(MINI, Standard(), 0, epochs=6, batch_size=64)
    assert found["hydra"] - found["magnitude"] >= 15, found


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_mnist
def test_hydra_beats_magnitude_with_the_published_fine_tuning() -> None:
    """Sehwag et al. 2020 search at a rate of 0.1 and fine-tune at 0.01, here for as many epochs.

    Measured, in percent under PGD-20: dense 80.3, magnitude 5.6, fine-tuned 48.9, HYDRA without fine-tuning 59.7; the
    gap with another seed, on half of these test images, is 15.3. But magnitude that is fine-tuned at 0.1 reaches 71.3:
    the claim is as much one about fine-tuning that is too gentle.
    """
    found = choices(Mnist(subset=12_000), PGD(epsilon=EPSILON, steps=3), EPSILON, epochs=8, batch_size=128)
    assert found["hydra"] - found["tuned"] >= 6, found
    assert found["hydra"] - found["magnitude"] >= 30, found
    assert found["dense"] - found["hydra"] >= 5, found
