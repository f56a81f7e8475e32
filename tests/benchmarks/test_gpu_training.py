"""Fast adversarial training of ResNet-18 on a GPU, beside the plain loop that a user would write.

Run with `-n 0 -m gpu -s`, `HEDGEROW_CIFAR10` naming a folder with CIFAR-10 as image files, `train/<class>/` and
`test/<class>/`. Both train the same network by the same algorithm, optimizer and schedule on the same images with such
crops and flips: `Train` in bf16 and channels-last with its data on the device, and a loop over a `DataLoader` with
torchvision's transforms in fp32. The loop has its images decoded and in memory, PyTorch's own settings (TF32 in
convolutions, kernels that need not be deterministic) and no gradients of the weights in the attack. What `Train` does
besides counts against it: loading the data, one validation and writing its weights.

The floors: more examples a second, and the same robust accuracy within 4 points, which is what two networks measured
on 2,000 images differ by.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn, optim
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, RandomCrop, RandomHorizontalFlip, ToTensor

from tasks.attacks.draws import Draws
from tasks.attacks.pgd import PGD
from tasks.data import Examples
from tasks.data.augmentation.crop_flip import CropFlip
from tasks.data.image_folder import ImageFolder
from tasks.models.initialise import initialise
from tasks.models.resnet import ResNet18
from tasks.models.weights import restore
from tasks.objectives.fgsm_rs import FGSMRS
from tasks.optimizers.sgd import SGD
from tasks.schedules.one_cycle import OneCycle
from tasks.task import Alone
from tasks.training.train import Train

pytestmark = [pytest.mark.gpu, pytest.mark.benchmark, pytest.mark.timeout(3000)]

EPSILON = 8 / 255
RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
EPOCHS = 6
HELD_OUT = 1000
ATTACKED = 2000
WORKERS = 8
WARM_UP = 20


@dataclass(frozen=True)
class Trained:
    """A network and what it took."""

    model: nn.Module
    rate: float
    """Examples a second, by the clock."""


class OneByOne(torchvision.datasets.CIFAR10):
    """torchvision's CIFAR-10 with these examples, decoded and in memory, and the usual transforms."""

    def __init__(self, examples: Examples) -> None:
        self.data, self.targets = examples.images.permute(0, 2, 3, 1).numpy(), examples.labels.tolist()
        self.transform = Compose([RandomCrop(32, padding=4), RandomHorizontalFlip(), ToTensor()])
        self.target_transform = None


def training(root: Path, epochs: int) -> Train:
    """As a recipe for a GPU would have it."""
    return Train(
        data=ImageFolder(root=root, validation=HELD_OUT),
        architecture=ResNet18(),
        objective=FGSMRS(epsilon=EPSILON),
        optimizer=SGD(learning_rate=RATE, momentum=MOMENTUM, weight_decay=DECAY),
        schedule=OneCycle(),
        augmentation=CropFlip(),
        epochs=epochs,
        validate_every=epochs,
        precision="bf16",
        channels_last=True,
        gpus=1,
    )


def by_hedgerow(task: Train, device: torch.device) -> Trained:
    """Trains in the task."""
    began = time.perf_counter()
    result = task.run(Alone())
    seconds = time.perf_counter() - began
    model = task.architecture.build(task.data.signature())
    restore(model, result.files["weights.safetensors"])
    return Trained(model.to(device), result.metrics["sample_steps"] / task.objective.passes() / seconds)


def by_hand(task: Train, device: torch.device, workers: int, steps: int | None = None) -> Trained:
    """Trains the same in fp32, over a loader.

    Args:
        task: what to train.
        device: where.
        workers: processes that augment.
        steps: after which to stop, if not at the end.
    """
    torch.manual_seed(0)
    loader = DataLoader(
        OneByOne(task.data.load("train")),
        batch_size=task.batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )
    whole = task.epochs * len(loader)
    model = initialise(task.architecture, task.data.signature(), task.init_seed).to(device).train()
    optimizer = optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    schedule = optim.lr_scheduler.LambdaLR(optimizer, lambda step: task.schedule.factor(min(step, whole - 1), whole))
    seen, step = 0, 0
    began = time.perf_counter()
    while step < (steps or whole):
        for batch, targets in loader:
            images, labels = batch.to(device, non_blocking=True), targets.to(device, non_blocking=True)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(attacked(model, images, labels)), labels).backward()
            optimizer.step()
            schedule.step()
            seen, step = seen + len(labels), step + 1
            if step == steps:
                break
    settled(device)
    return Trained(model, seen / (time.perf_counter() - began))


def attacked(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One long step from a random start (Wong et al. 2020, algorithm 3), the network in evaluation mode."""
    model.eval()
    change = torch.empty_like(images).uniform_(-EPSILON, EPSILON).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(images + change), labels), change)
    model.train()
    return (images + (change + 1.25 * EPSILON * gradient.sign()).clamp(-EPSILON, EPSILON)).clamp(0, 1).detach()


def settled(device: torch.device) -> None:
    """Waits for all the work that is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def plain_settings() -> Iterator[None]:
    """What PyTorch comes with, for those who have not asked for the same bytes every time."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = True, False
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before
        torch.use_deterministic_algorithms(deterministic, warn_only=True)


def robust_accuracy(model: nn.Module, task: Train, device: torch.device, count: int) -> tuple[float, float]:
    """Without attack and under PGD, on the first of a shuffled test part."""
    model.eval().requires_grad_(False)
    test = task.data.load("test")
    rows = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:count]
    clean = standing = 0
    for part in rows.split(250):
        images, labels = test.images[part].to(device).float() / 255, test.labels[part].to(device)
        perturbed = PGD(steps=20).perturb(model, images, labels, EPSILON, Draws(0, part.to(device)))
        with torch.no_grad():
            clean += int((model(images).argmax(dim=1) == labels).sum())
            standing += int((model(perturbed).argmax(dim=1) == labels).sum())
    return clean / len(rows), standing / len(rows)


def compared(
    task: Train, device: torch.device, workers: int, count: int, warm_up: int
) -> tuple[tuple[Trained, float], tuple[Trained, float]]:
    """The task and the plain loop: each network with its rate, and its robust accuracy; prints all of it.

    Args:
        task: what is trained.
        device: where.
        workers: processes that load images for the plain loop.
        count: test images that are attacked.
        warm_up: steps before the time counts: they decode the images and wake the device.
    """
    task.model_copy(update={"stop_at": warm_up}).run(Alone())
    ours = by_hedgerow(task, device)
    with plain_settings():
        by_hand(task, device, workers, steps=warm_up)
        theirs = by_hand(task, device, workers)
    found = []
    for name, trained in (("hedgerow", ours), ("plain loop", theirs)):
        clean, robust = robust_accuracy(trained.model, task, device, count)
        print(f"  {name}: {trained.rate:,.0f} examples a second, clean {clean:.1%}, PGD-20 {robust:.1%}")
        found.append((trained, robust))
    print(f"  {ours.rate / theirs.rate:.2f} times as fast")
    return found[0], found[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.skipif("HEDGEROW_CIFAR10" not in os.environ, reason="HEDGEROW_CIFAR10 names no folder")
def test_training_on_a_gpu_beside_the_plain_loop() -> None:
    task = training(Path(os.environ["HEDGEROW_CIFAR10"]), EPOCHS)
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, {EPOCHS} epochs, {WORKERS} loading processes")
    (ours, robust), (theirs, robust_by_hand) = compared(task, torch.device("cuda"), WORKERS, ATTACKED, WARM_UP)
    assert ours.rate > theirs.rate
    assert abs(robust - robust_by_hand) <= 0.04
