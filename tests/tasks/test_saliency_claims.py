"""What papers say of saliencies: which empty layers, whose masks can be shuffled, which stop transferred attacks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import product
from statistics import mean
from typing import Any, Literal

import pytest
import torch
from torch import nn

from tasks.attacks.ascent import ascend, cross_entropy_gradient
from tasks.attacks.ball import ball
from tasks.attacks.draws import Draws
from tasks.data import Dataset, Signature
from tasks.data.mnist import Mnist
from tasks.data.mnist_mini import MnistMini
from tasks.models import Architecture
from tasks.models.initialise import initialise
from tasks.models.lenet import LeNet300100
from tasks.models.linear import Linear
from tasks.models.network import Network
from tasks.models.weights import restore
from tasks.optimizers.adam import Adam
from tasks.pruning import Saliency
from tasks.pruning.gap import GAP
from tasks.pruning.grasp import GraSP
from tasks.pruning.magnitude import Magnitude
from tasks.pruning.mask import Mask
from tasks.pruning.prune import Prune
from tasks.pruning.random import Random
from tasks.pruning.shuffle import ShuffleMask
from tasks.pruning.snip import SNIP
from tasks.pruning.synflow import SynFlow
from tasks.task import Alone, Task
from tasks.training.train import Train
from tests.tasks.test_pruning import Finished, trained

MNIST = os.environ.get("HEDGEROW_DATA")
RADIUS = 0.15
"""Of the transferred attack, L-inf: there the parent has 2 to 4 % left."""

needs_mnist = pytest.mark.skipif(not MNIST, reason="needs HEDGEROW_DATA, a folder with MNIST")
pytestmark = pytest.mark.usefixtures("one_thread")


class Deep(Architecture):
    """Six hidden layers of 100 units."""

    kind: Literal["toy-deep"] = "toy-deep"

    def build(self, data: Signature) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs in (data.height * data.width, *[100] * 5):
            layers += [Linear(inputs, 100), nn.ReLU()]
        output = Linear(100, data.classes)
        return Network(data, nn.Sequential(*layers, output), output)


def step(task: Task, **inputs: Finished | None) -> Finished:
    result = task.run(Alone(), **{name: given for name, given in inputs.items() if given is not None})
    return Finished(result.files, result.metrics)


def fewest(compression: int, seed: int, **fields: Any) -> int:
    """How many weights are left to the layer that has fewest; 0 if the pruning is refused for that."""
    data = MnistMini()
    initial = trained(initialise(Deep(), data.signature(), seed, "kaiming-normal"))
    prune = Prune(density=1 / compression, seed=seed, **fields).beside(data, Deep())
    try:
        mask = Mask.from_bytes(step(prune, trained=initial).read("mask.safetensors"))
    except ValueError as refusal:
        if "leaves none of the" not in str(refusal):
            raise
        return 0
    assert mask.nnz == round(129_400 / compression)
    return min(mask.layer_nnz.values())


def test_only_iterated_synflow_never_empties_a_layer() -> None:
    """Tanaka et al. 2020, Fig. 1 and Alg. 1: six hidden layers at initialisation, all weights ranked together.

    Measured with three seeds, weights left to the smallest layer at compressions 10, 30, 100, 300, 1000 and 2000:
    SynFlow 759 to 773, 418 to 448, 98 to 127, 25 to 37, 11 to 15, 6 and 7; SNIP 344 to 426, 211 to 263, 10 to 31, 0 and
    1, 0, 0; GraSP 393 to 454, 179 to 289, 6 to 16, 0, 0, 0; magnitude 85 to 101 and then 0; SynFlow in one round 0.
    """
    assert fewest(10, 0, saliency=SynFlow(), rounds=1) == 0
    assert fewest(10, 0, saliency=Magnitude()) > 30
    assert fewest(30, 0, saliency=Magnitude()) == 0
    for saliency in (SNIP(), GraSP()):
        assert fewest(30, 0, saliency=saliency) > 80
        assert fewest(1000, 0, saliency=saliency) == 0
    assert fewest(10, 0, saliency=SynFlow()) > 600
    assert fewest(2000, 0, saliency=SynFlow()) >= 3
    assert fewest(2000, 1, saliency=SynFlow()) >= 3


def network_of(train: Train, finished: Finished) -> nn.Module:
    model = train.architecture.build(train.data.signature())
    restore(model, finished.read("weights.safetensors"))
    return model.eval().requires_grad_(False)


def right(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return model(images).argmax(dim=1) == labels


def percent(hits: torch.Tensor) -> float:
    return 100 * float(hits.double().mean())


def transferred(
    data: Dataset, epochs: tuple[int, int], arms: Mapping[str, tuple[Saliency, int]]
) -> dict[str, tuple[float, float, float]]:
    """Clean accuracy of pruned and fine-tuned networks, that on adversarial images of their parent, and the latter on
    images that parent and network both get right as they are; in percent.

    Args:
        data: to learn, and to attack the test part of.
        epochs: of the parent, and of the fine-tuning.
        arms: what each network is pruned by, and how many weights it has one of left.
    """
    seed = 0
    train = Train(
        data=data,
        architecture=LeNet300100(),
        optimizer=Adam(learning_rate=1.2e-3),
        batch_size=60,
        epochs=epochs[0],
        init_seed=seed,
        seed=seed,
    )
    dense = step(train)
    tuning = train.model_copy(update={"epochs": epochs[1], "schedule_from": "zero"})
    parent, test = network_of(train, dense), data.load("test")
    images, labels = test.images.float() / 255, test.labels
    within = ball("linf", images, RADIUS)
    start = within.random(Draws(seed, torch.arange(len(labels))))
    attacked = ascend(cross_entropy_gradient(parent, labels), start, within, 2.5 * RADIUS / 20, 20)
    found = {"parent": (percent(right(parent, images, labels)), percent(right(parent, attacked, labels)), 0.0)}
    for name, (saliency, compression) in arms.items():
        prune = Prune(saliency=saliency, density=1 / compression, output_layer="exclude", seed=seed)
        mask = step(prune.beside(data, train.architecture), trained=dense)
        child = network_of(train, step(tuning, start=dense, mask=mask))
        both = right(child, images, labels) & right(parent, images, labels)
        withstood = right(child, attacked, labels)
        found[name] = (percent(right(child, images, labels)), percent(withstood), percent(withstood[both]))
    return found


def gap(variant: Literal["global", "global-times-parameter"]) -> GAP:
    return GAP(epsilon=RADIUS, variant=variant)


def test_attacks_on_the_parent_transfer_worse_to_a_network_pruned_by_gap() -> None:
    """Weiss et al. 2022: half of the weights gone, tuned for two epochs, against masks by magnitude and at random.

    Measured with five seeds, clean and under the parent's attack: magnitude 94.7 to 95.0 and 3.2 to 4.5, random 93.7 to
    94.9 and 4.9 to 7.9, GAP 90.2 to 91.9 and 15.9 to 18.6, its variant with the parameter 91.8 to 93.0 and 58.1 to
    60.4. So the gain has its price, and a mask that just differs from the parent's largest weights has some of it:
    at an eighth of the weights magnitude has 8, random 31 and GAP 41 to 54.
    """
    found = transferred(
        MnistMini(validation=1000, subset=4000),
        (8, 2),
        {
            "magnitude": (Magnitude(), 2),
            "random": (Random(), 2),
            "gap": (gap("global"), 2),
            "parameter": (gap("global-times-parameter"), 2),
        },
    )
    assert found["parent"][0] >= 93, found
    assert found["gap"][0] >= 88, found
    for measure in (1, 2):
        assert found["gap"][measure] - found["magnitude"][measure] >= 8, found
        assert found["gap"][measure] - found["random"][measure] >= 4, found
        assert found["parameter"][measure] - found["gap"][measure] >= 20, found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_mnist
def test_attacks_on_the_parent_transfer_worse_to_a_network_pruned_by_gap_on_mnist() -> None:
    """The same with 54,000 training images and 10,000 of test, at a half and at an eighth of the weights.

    Measured, clean and under the parent's attack, of which it has 97.0 and 6.6 left. At a half: magnitude 97.6 and
    11.6, random 97.4 and 17.6, GAP 96.5 and 30.3, with the parameter 96.7 and 57.8. At an eighth: magnitude 97.9 and
    20.0, random 96.0 and 33.4, GAP 93.7 and 44.9, with the parameter 96.5 and 68.6.
    """
    saliencies = {
        "magnitude": Magnitude(),
        "random": Random(),
        "gap": gap("global"),
        "parameter": gap("global-times-parameter"),
    }
    arms = {f"{name} {share}": (saliencies[name], share) for share in (2, 8) for name in saliencies}
    found = transferred(Mnist(root=MNIST), (3, 1), arms)
    for share in (2, 8):
        for measure in (1, 2):
            parts = {name: found[f"{name} {share}"][measure] for name in saliencies}
            assert parts["gap"] - parts["magnitude"] >= 8, found
            assert parts["gap"] - parts["random"] >= 4, found
            assert parts["parameter"] - parts["gap"] >= 10, found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_mnist
def test_a_shuffle_costs_a_mask_of_snip_less_than_one_of_trained_weights() -> None:
    """After Frankle et al. 2021, "Pruning neural networks at initialization: why are we missing the mark?".

    There the shuffle costs masks of SNIP nothing. Here it does cost a little: with seeds 0 and 1, 5 % of the weights,
    SNIP's masks reach 94.7 and 94.7, shuffled 93.7 and 93.7, shuffled in all layers but the first 94.3 and 94.3, for
    the first knows which pixels are always black; of a small convolutional network 94.3 and 93.1, shuffled 93.6 and
    92.5. The largest of trained weights lose more: 96.4 and 96.5, shuffled 93.7 and 93.0; convolutional 97.2 and 97.0,
    shuffled 92.3 and 92.8. The seeds of the test are others.
    """
    accuracies: dict[tuple[str, bool], list[float]] = {}
    for arm, shuffled, seed in product(("snip", "trained"), (False, True), (2, 3)):
        train = Train(
            data=Mnist(root=MNIST, subset=12000),
            architecture=LeNet300100(),
            initialiser="xavier-normal",
            optimizer=Adam(learning_rate=1.2e-3),
            batch_size=60,
            epochs=8,
            init_seed=seed,
            seed=seed,
        )
        pruned = train.model_copy(update={"stop_at": 0}) if arm == "snip" else train
        prune = Prune(density=0.05, saliency=SNIP() if arm == "snip" else Magnitude(), seed=seed)
        mask = step(prune.beside(train.data, train.architecture), trained=step(pruned))
        if shuffled:
            mask = step(ShuffleMask(seed=seed), mask=mask)
        test = train.data.load("test")
        hits = right(network_of(train, step(train, mask=mask)), test.images.float() / 255, test.labels)
        accuracies.setdefault((arm, shuffled), []).append(percent(hits))
    loss = {arm: mean(accuracies[arm, False]) - mean(accuracies[arm, True]) for arm in ("snip", "trained")}
    assert loss["trained"] - loss["snip"] >= 1, accuracies
