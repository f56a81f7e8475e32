"""What attacks cost beside the libraries that people use now.

Run with `-n 0 -m benchmark -s`. All attack the same images with the same model on one thread, taking turns, and medians
of processor time are compared. Each library is skipped where it is not installed: `pip install pyautoattack foolbox
adversarial-robustness-toolbox`, and without their dependencies, whose pins are in the way, `pip install --no-deps
torchattacks adv-lib` (adv-lib imports `visdom`). The networks are trained on MNIST in `HEDGEROW_DATA`, or on
`mnist-mini`.

The floors: PGD-40 on a weak network 3 times as fast as each library, and as fast as the fastest (with 10 % for noise)
on a robust one; AutoAttack 1.5 times as fast as pyautoattack and no weaker; a curve of 8 epsilons at most 1.6 times its
dearest single one.
"""

import contextlib
import copy
import io
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.autoattack import AutoAttack
from tasks.attacks.draws import Draws
from tasks.attacks.pgd import PGD
from tasks.data import Dataset
from tasks.data.mnist import Mnist
from tasks.data.mnist_mini import MnistMini
from tasks.device import settle
from tasks.measuring.evaluate import Evaluate
from tasks.measuring.gauge import Gauge
from tasks.measuring.input_gradient import with_fast_input_gradients
from tasks.models.small_cnn import SmallCNN
from tasks.models.weights import restore
from tasks.objectives.fgsm_rs import FGSMRS
from tasks.objectives.standard import Standard
from tasks.optimizers.adam import Adam
from tasks.schedules.one_cycle import OneCycle
from tasks.task import Alone
from tasks.training.train import Train
from tests.tasks.training_toys import Finished

pytestmark = pytest.mark.benchmark

Name = Literal["standard", "fgsm-rs"]
FULL = "HEDGEROW_DATA" in os.environ
EPSILON = 0.3
COUNT = 500
ROUNDS = 5


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    settle(1)
    yield
    torch.set_num_threads(threads)


def data() -> Dataset:
    return Mnist(validation=1000) if FULL else MnistMini(validation=1000)


@cache
def finished(name: Name) -> Finished:
    objective = Standard() if name == "standard" else FGSMRS(epsilon=EPSILON)
    training = Train(
        data=data(),
        architecture=SmallCNN(),
        objective=objective,
        optimizer=Adam(learning_rate=5e-3),
        schedule=OneCycle(warmup=0.4),
        epochs=10,
    )
    result = training.run(Alone())
    return Finished(result.metrics, result.files)


def problem(name: Name) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """The network, and the first images of the test part with their labels."""
    model = SmallCNN().build(data().signature())
    restore(model, finished(name).read("weights.safetensors"))
    examples = data().load("test")
    return model.eval().requires_grad_(False), examples.images[:COUNT].float() / 255, examples.labels[:COUNT]


def standing(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(dim=1) == labels).double().mean())


Run = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


def hedgerow(attack: Attack, batch: int = COUNT) -> Run:
    """As an evaluation runs it, the model with fast input gradients included."""

    def run(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        ready = Gauge(with_fast_input_gradients(copy.deepcopy(model)))
        rows = torch.arange(len(images)).split(batch)
        return torch.cat([attack.perturb(ready, images[each], labels[each], EPSILON, Draws(0, each)) for each in rows])

    return run


def adv_lib() -> Run:
    attacks = pytest.importorskip("adv_lib.attacks")
    return lambda model, images, labels: attacks.pgd_linf(
        model, images, labels, ε=EPSILON, steps=40, relative_step_size=0.1, absolute_step_size=None
    )


def torchattacks() -> Run:
    library = pytest.importorskip("torchattacks")
    return lambda model, images, labels: library.PGD(model, eps=EPSILON, alpha=EPSILON / 10, steps=40)(images, labels)


def foolbox() -> Run:
    library = pytest.importorskip("foolbox")

    def run(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        attack = library.attacks.LinfPGD(steps=40, rel_stepsize=0.1)
        found: torch.Tensor = attack(library.PyTorchModel(model, bounds=(0, 1)), images, labels, epsilons=EPSILON)[1]
        return found

    return run


def art() -> Run:
    attacks = pytest.importorskip("art.attacks.evasion")
    from art.estimators.classification import PyTorchClassifier

    def run(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        classifier = PyTorchClassifier(
            model, loss=nn.CrossEntropyLoss(), input_shape=(1, 28, 28), nb_classes=10, clip_values=(0, 1)
        )
        attack = attacks.ProjectedGradientDescentPyTorch(
            classifier,
            eps=EPSILON,
            eps_step=EPSILON / 10,
            max_iter=40,
            num_random_init=1,
            batch_size=COUNT,
            verbose=False,
        )
        return torch.from_numpy(attack.generate(images.numpy(), np.asarray(labels)))

    return run


LIBRARIES: dict[str, Callable[[], Run]] = {
    "adv-lib": adv_lib,
    "torchattacks": torchattacks,
    "foolbox": foolbox,
    "ART": art,
}


def timed(runs: dict[str, Run], name: Name, rounds: int = ROUNDS) -> dict[str, tuple[float, float]]:
    """Median seconds of processor time and what is left standing, for each, taking turns."""
    model, images, labels = problem(name)
    seconds: dict[str, list[float]] = {each: [] for each in runs}
    left: dict[str, float] = {}
    for _ in range(rounds):
        for each, run in runs.items():
            start = time.process_time()
            with contextlib.redirect_stdout(io.StringIO()):
                perturbed = run(model, images.clone(), labels.clone())
            seconds[each].append(time.process_time() - start)
            left[each] = standing(model, perturbed, labels)
    return {each: (statistics.median(seconds[each]), left[each]) for each in runs}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "floor"), [("standard", 3.0), ("fgsm-rs", 0.9)])
def test_pgd_beside_the_libraries(name: Name, floor: float) -> None:
    runs: dict[str, Run] = {"hedgerow": hedgerow(PGD(steps=40))}
    for each, make in LIBRARIES.items():
        with contextlib.suppress(pytest.skip.Exception):
            runs[each] = make()
    if len(runs) == 1:
        pytest.skip("no other library is installed")
    found = timed(runs, name)
    own, left = found.pop("hedgerow")
    print(f"\nPGD-40, {COUNT} images, {name} network, epsilon {EPSILON}: hedgerow {own:.3f} s, {left:.1%} standing")
    for each, (seconds, others) in found.items():
        print(f"  {each}: {seconds:.3f} s, {seconds / own:.2f} times as long, {others:.1%} standing")
    assert left <= min(others for _, others in found.values()) + 0.004
    assert min(seconds for seconds, _ in found.values()) >= floor * own


@pytest.mark.timeout(1800)
def test_autoattack_beside_the_reference() -> None:
    reference = pytest.importorskip("pyautoattack")

    def run(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.random.fork_rng():
            attack = reference.AutoAttack(model, norm="Linf", eps=EPSILON, version="standard", device="cpu", seed=0)
            found: torch.Tensor = attack.run_standard_evaluation(images, labels, batch_size=250)[0]
        return found

    found = timed({"hedgerow": hedgerow(AutoAttack(), batch=128), "pyautoattack": run}, "fgsm-rs", rounds=1)
    (own, left), (seconds, others) = found["hedgerow"], found["pyautoattack"]
    print(f"\nAutoAttack, {COUNT} images: hedgerow {own:.1f} s, {left:.1%}; pyautoattack {seconds:.1f} s, {others:.1%}")
    print(f"  {seconds / own:.2f} times as fast")
    assert left <= others + 0.002
    assert seconds >= 1.5 * own


@pytest.mark.timeout(1800)
def test_a_curve_beside_its_single_epsilons() -> None:
    grid = tuple(round(EPSILON * share, 4) for share in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0))

    def evaluated(*epsilons: float) -> tuple[float, Any]:
        task = Evaluate(data=data(), architecture=SmallCNN(), attacks=(AutoAttack(),), epsilons=epsilons, examples=100)
        start = time.process_time()
        result = task.run(Alone(), trained=finished("fgsm-rs"))
        return time.process_time() - start, result.metrics["robust"]

    finished("fgsm-rs")  # training is not what is timed
    curve, levels = evaluated(*grid)
    alone = [evaluated(epsilon) for epsilon in grid]
    dearest, total = max(seconds for seconds, _ in alone), sum(seconds for seconds, _ in alone)
    print(f"\n8 epsilons at once {curve:.1f} s; the dearest alone {dearest:.1f} s; all alone {total:.1f} s")
    for level, (_, single) in zip(levels, alone, strict=True):
        print(f"  epsilon {level['epsilon']}: {level['accuracy']:.1%} on the curve, {single[0]['accuracy']:.1%} alone")
    print(f"  {curve / dearest:.2f} of the dearest, {curve / total:.2f} of all")
    assert curve <= 1.6 * dearest
    assert (
        max(level["accuracy"] - single[0]["accuracy"] for level, (_, single) in zip(levels, alone, strict=True)) <= 0.01
    )
