"""Early-bird tickets: training ends when the mask it would be pruned to stands still, and not otherwise."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import nn

from tasks.attacks import pgd
from tasks.attacks.draws import Draws
from tasks.data import Dataset
from tasks.data.mnist import Mnist
from tasks.data.mnist_mini import MnistMini
from tasks.models.initialise import initialise
from tasks.models.lenet import LeNet300100
from tasks.models.prunable import prunable
from tasks.models.weights import restore
from tasks.objectives import Objective
from tasks.objectives.pgd import PGD
from tasks.objectives.standard import Standard
from tasks.optimizers.sgd import SGD
from tasks.pruning.mask import Mask
from tasks.pruning.prune import Prune
from tasks.pruning.shuffle import ShuffleMask
from tasks.pruning.sparsifiers import Stage
from tasks.pruning.sparsifiers.early_bird import EarlyBird
from tasks.schedules.cosine import Cosine
from tasks.training.train import Train
from tests.tasks.digits import accuracy
from tests.tasks.training_toys import BATCHES, Blobs, Finished, Tiny, history, toy, trained

TOTAL = 27 + 576 + 48


def network(seed: int) -> nn.Module:
    return initialise(Tiny(), Blobs().signature(), seed)


def magnitude_mask(model: nn.Module, keep: int) -> Mask:
    kernels = prunable(model)
    return Mask.ones_like(kernels).top({name: kernel.abs() for name, kernel in kernels.items()}, keep)


def distance(one: Mask, other: Mask) -> float:
    """The share of the weights of one that the other does not keep."""
    return 1 - (one & other).nnz / one.nnz


def test_distances_are_the_shares_of_weights_that_the_other_does_not_keep_oldest_first() -> None:
    """Three networks go by, then the third again: it is at distance zero from itself alone."""
    keep = round(0.3 * TOTAL)
    sparsifier = EarlyBird(density=0.3, window=3, distance=0.9)
    memory = sparsifier.memory(network(0), None)
    changes = [
        sparsifier.after_step(network(seed), memory, Stage(10 * turn, 100, 10, None))
        for turn, seed in enumerate([7, 0, 1, 2, 2], start=1)
    ]
    assert changes[:3] == [None, None, None], "three masks are not enough to compare a fourth with"
    masks = [magnitude_mask(network(seed), keep) for seed in (0, 1, 2)]
    assert changes[4] is not None
    assert changes[4].mask is None
    assert changes[4].stop == {
        "why": "early-bird",
        "distances": [pytest.approx(distance(masks[2], mask)) for mask in masks],
    }
    assert changes[4].stop["distances"][2] == 0


def test_one_mask_that_is_far_away_keeps_the_training_going() -> None:
    sparsifier = EarlyBird(density=0.3, window=3, distance=0.01)
    memory = sparsifier.memory(network(0), None)

    def stops(seed: int) -> bool:
        return sparsifier.after_step(network(seed), memory, Stage(10, 100, 10, None)) is not None

    assert [stops(seed) for seed in (0, 1, 1, 1, 1, 1)] == [False, False, False, False, True, True]
    assert [stops(seed) for seed in (0, 1, 1, 1, 1)] == [False, False, False, False, True]


@pytest.mark.parametrize(("every", "draws"), [(1.0, [10, 20, 30]), (0.3, [*range(3, 31, 3)]), (0.01, [*range(1, 31)])])
def test_masks_are_drawn_as_often_as_asked(every: float, draws: list[int]) -> None:
    sparsifier = EarlyBird(density=0.3, every=every, window=1)
    model = network(0)
    memory = sparsifier.memory(model, None)
    stops = [step for step in range(1, 31) if sparsifier.after_step(model, memory, Stage(step, 99, 10, None))]
    assert stops == draws[1:], "the first mask has none to be compared with"


def test_a_training_ends_where_its_mask_stands_still_and_says_so() -> None:
    still = SGD(learning_rate=1e-9)
    step = trained(toy(optimizer=still, sparsifier=EarlyBird(density=0.3, window=2, every=0.5), validate_every=5))
    assert step.metrics["stopped"] == {"why": "early-bird", "distances": [0.0, 0.0], "detected_at": 9}
    assert step.metrics["step"] == 9
    assert step.metrics["sample_steps"] == 44 + 24
    assert step.metrics["density"] == 1
    assert [entry["step"] for entry in history(step)] == [BATCHES, 9]
    assert step.metrics["last"]["step"] == step.metrics["best"]["step"] == 9, (
        "the network that it ends with is measured"
    )


@pytest.mark.parametrize(
    ("fields", "optimizer"),
    [
        ({"density": 0.3, "window": 2, "distance": 1e-3}, SGD(learning_rate=0.2, momentum=0.9)),
        ({"density": 0.3, "window": 5}, SGD(learning_rate=1e-9)),
        ({"density": 0.3, "window": 2}, SGD(learning_rate=1e-9)),
    ],
    ids=["moving", "too-few-masks", "at-the-last-step"],
)
def test_a_training_that_never_stands_still_is_as_if_nothing_had_watched(
    fields: dict[str, Any], optimizer: SGD
) -> None:
    """One whose mask stands still at its very last step has nothing left to spare."""
    watched = trained(toy(optimizer=optimizer, sparsifier=EarlyBird(**fields)))
    alone = trained(toy(optimizer=optimizer))
    assert watched.metrics == alone.metrics
    assert watched.files == alone.files


DENSITY, EPSILON = 0.05, 0.1


def standing(data: Dataset, step: Finished) -> float:
    """Accuracy on test images, under PGD-10 at the radius of the robust trainings."""
    model = LeNet300100().build(data.signature())
    restore(model, step.read("weights.safetensors"))
    model.eval().requires_grad_(False)
    test = data.load("test")
    images, labels = test.images[:2000].float() / 255, test.labels[:2000]
    if step.metrics["robust"]:
        images = pgd.PGD(steps=10).perturb(model, images, labels, EPSILON, Draws(0, torch.arange(len(labels))))
    return 100 * accuracy(model, images, labels)


def tickets(data: Dataset, objective: Objective, epochs: int, retraining: int, seed: int = 0) -> dict[str, Any]:
    """Where the early bird stops, and what tickets are worth that are trained from the initial weights."""
    common: dict[str, Any] = {
        "data": data,
        "architecture": LeNet300100(),
        "objective": objective,
        "optimizer": SGD(learning_rate=0.1, momentum=0.9),
        "schedule": Cosine(),
        "batch_size": 64,
        "validate_every": 100,
        "seed": seed,
        "init_seed": seed,
    }
    bird = EarlyBird(density=DENSITY, distance=0.25, every=0.25)
    early = trained(Train(**common, epochs=epochs, sparsifier=bird))
    late = trained(Train(**common, epochs=epochs))
    masks = {
        "early": trained(Prune(density=DENSITY), trained=early),
        "late": trained(Prune(density=DENSITY), trained=late),
    }
    masks["shuffled"] = trained(ShuffleMask(), mask=masks["late"])
    found: dict[str, Any] = {}
    for name, mask in masks.items():
        step = trained(Train(**common, epochs=retraining), mask=mask)
        step.metrics = {**step.metrics, "robust": objective.threat is not None}
        found[name] = standing(data, step)
    share = early.metrics["step"] / late.metrics["step"]
    return found | {"share": share, "distances": early.metrics["stopped"]["distances"]}


OBJECTIVES = {"standard": Standard(), "robust": PGD(epsilon=EPSILON, steps=3)}


def require_early_ticket(found: dict[str, Any], share: float, points: float, over_shuffled: float) -> None:
    """The mask stood still before so much of the training was over, and its ticket is a ticket."""
    assert found["share"] <= share, found
    assert found["distances"] == sorted(found["distances"], reverse=True), "the further back, the further away"
    assert max(found["distances"]) < 0.25, found
    assert found["early"] >= found["late"] - points, found
    assert found["early"] - found["shuffled"] >= over_shuffled, found


@pytest.mark.usefixtures("one_thread")
def test_the_ticket_of_a_third_of_the_training_is_as_good_as_that_of_its_end() -> None:
    """Three seeds: stopped after 35 %; 92.9 to 93.1 % against 93.2 to 93.3 in the end and 86.7 to 87.5 shuffled."""
    data = MnistMini(validation=500, subset=4000)
    found = tickets(data, OBJECTIVES["standard"], epochs=8, retraining=3)
    require_early_ticket(found, share=0.45, points=1, over_shuffled=3)


@pytest.mark.usefixtures("one_thread")
def test_robust_early_birds_are_nearly_as_good_as_the_ticket_of_the_end() -> None:
    """Three seeds, under PGD-10: 76.3 to 77.4 % against 77.9 to 78.6 in the end and 11 to 28 shuffled.

    Stopped after 55 % of six epochs. Xi et al. 2022 find no loss at all; here it is 0.6 to 1.8 points.
    """
    data = MnistMini(validation=500, subset=4000)
    found = tickets(data, OBJECTIVES["robust"], epochs=6, retraining=3)
    require_early_ticket(found, share=0.7, points=4, over_shuffled=30)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif("HEDGEROW_DATA" not in os.environ, reason="HEDGEROW_DATA names no folder with MNIST")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_early_birds_of_mnist(name: str) -> None:
    """Measured: stopped after 30 %, 94.7 % against 95.2 and 91.4 shuffled; robust 38 %, 80.1 against 80.9 and 71.2."""
    found = tickets(Mnist(subset=12_000), OBJECTIVES[name], epochs=10, retraining=5)
    require_early_ticket(found, share=0.5, points=2, over_shuffled=2)
