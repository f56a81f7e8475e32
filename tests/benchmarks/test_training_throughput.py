"""What the training task costs beside the same arithmetic without a framework, and beside a DataLoader.

Run with `-n 0 -m benchmark -s`. All three train LeNet-300-100 with the same optimizer on one thread, on MNIST in
`HEDGEROW_DATA` or on `mnist-mini` repeated to as many examples. They take turns, and medians of processor time are
compared: each is one thread of one process, and what else the machine does counts as little as it can.

The floors: at most 1.15 times the bare loop, and 4 times as fast as the DataLoader.
"""

import gzip
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Literal

import pytest
import torch
import torchvision
from torch import nn, optim
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, Normalize, ToTensor

from tasks.data import Dataset, Examples, Signature, Split
from tasks.data.mnist import Mnist
from tasks.data.mnist_mini import MnistMini
from tasks.device import settle
from tasks.models.initialise import initialise
from tasks.models.lenet import LeNet300100
from tasks.optimizers.sgd import SGD
from tasks.task import Alone
from tasks.training.train import Train

pytestmark = pytest.mark.benchmark

BATCH_SIZE = 128
ROUNDS = 5
RATE, MOMENTUM = 0.1, 0.9
EXAMPLES = 54_000


class Digits(Dataset):
    """As many digits as the training part of MNIST; hardly any for validation, since what is timed is training."""

    kind: Literal["benchmark-digits"] = "benchmark-digits"

    def fingerprint(self) -> str:
        return "benchmark"

    def signature(self) -> Signature:
        return source().signature()

    def load(self, split: Split) -> Examples:
        return digits() if split == "train" else Examples(digits().images[:1], digits().labels[:1])


def source() -> Dataset:
    return Mnist() if "HEDGEROW_DATA" in os.environ else MnistMini()


@cache
def digits() -> Examples:
    found = source().load("train")
    again = -(-EXAMPLES // len(found))
    return Examples(found.images.repeat(again, 1, 1, 1)[:EXAMPLES], found.labels.repeat(again)[:EXAMPLES])


class OneByOne(torchvision.datasets.MNIST):
    """torchvision's MNIST with these examples and the transforms of PyTorch's own MNIST example."""

    def __init__(self, examples: Examples) -> None:
        self.data, self.targets = examples.images.squeeze(1), examples.labels
        self.transform = Compose([ToTensor(), Normalize((0.1307,), (0.3081,))])
        self.target_transform = None


def epoch_by_hand(batches: Iterator[tuple[torch.Tensor, torch.Tensor]], model: nn.Module) -> None:
    optimizer = optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, fused=True)
    model.train()
    for images, labels in batches:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


def sliced(images: torch.Tensor, labels: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for batch in torch.randperm(len(labels)).split(BATCH_SIZE):
        yield images[batch], labels[batch]


def seconds(act: Callable[[], object]) -> float:
    begin = time.process_time()
    act()
    return time.process_time() - begin


def test_training_costs_what_its_arithmetic_costs(capsys: pytest.CaptureFixture[str]):
    settle(1)
    data = Digits()
    examples = digits()
    images, labels = examples.images.float() / 255, examples.labels
    loader = DataLoader(OneByOne(examples), batch_size=BATCH_SIZE, shuffle=True)
    task = Train(
        data=data,
        architecture=LeNet300100(),
        optimizer=SGD(learning_rate=RATE, momentum=MOMENTUM),
        epochs=1,
        batch_size=BATCH_SIZE,
    )
    fresh = lambda: initialise(LeNet300100(), data.signature(), 0)
    batches = len(labels) // BATCH_SIZE
    contestants: dict[str, Callable[[], object]] = {
        "arithmetic": lambda: epoch_by_hand(repeat((images[:BATCH_SIZE], labels[:BATCH_SIZE]), batches), fresh()),
        "bare loop": lambda: epoch_by_hand(sliced(images, labels), fresh()),
        "hedgerow": lambda: task.run(Alone()),
        "DataLoader": lambda: epoch_by_hand(iter(loader), fresh()),
    }
    task.run(Alone())
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, act in contestants.items():
            times[name].append(seconds(act))
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    over_bare = medians["hedgerow"] / medians["bare loop"]
    gain, room = medians["DataLoader"] / medians["hedgerow"], medians["DataLoader"] / medians["arithmetic"]
    with capsys.disabled():
        print(f"\nan epoch of {EXAMPLES}: " + ", ".join(f"{name} {median:.2f} s" for name, median in medians.items()))
        print(f"hedgerow / bare loop {over_bare:.3f}, DataLoader / hedgerow {gain:.2f} of {room:.2f} possible")
    assert over_bare <= 1.15
    assert gain >= 4


@pytest.mark.skipif("OPEN_LTH" not in os.environ, reason="OPEN_LTH names no checkout of facebookresearch/open_lth")
@pytest.mark.skipif("HEDGEROW_DATA" not in os.environ, reason="HEDGEROW_DATA names no MNIST")
def test_training_is_several_times_as_fast_as_open_lth(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Four epochs of all of MNIST, tested after each, one thread.

    The checkout must run: today it needs `Model` taken from the bases of the two parallel models, and `np.prod`.
    """
    settle(1)
    raw = tmp_path / "open_lth_datasets" / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in Path(os.environ["HEDGEROW_DATA"]).glob("*.gz"):
        (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    completed = subprocess.run(
        [sys.executable, "open_lth.py", "train", "--default_hparams=mnist_lenet_300_100", "--training_steps=4ep",
         "--num_workers", "0"],
        cwd=os.environ["OPEN_LTH"], env={**os.environ, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    epochs = re.findall(r"test\tep 00[1-4].*time ([\d.]+)s", completed.stdout)
    assert len(epochs) == 4, completed.stdout + completed.stderr
    theirs = sum(map(float, epochs))
    task = Train(
        data=AllOfMnist(),
        architecture=LeNet300100(),
        optimizer=SGD(learning_rate=RATE),
        epochs=4,
        batch_size=BATCH_SIZE,
    )
    task.run(Alone())  # the first run prepares the data
    begin = time.perf_counter()
    accuracy = task.run(Alone()).metrics["last"]["accuracy"]
    ours = time.perf_counter() - begin
    with capsys.disabled():
        print(f"\nopen_lth {theirs:.1f} s, hedgerow {ours:.1f} s ({100 * accuracy:.1f} %): {theirs / ours:.1f} times")
    assert theirs / ours >= 4


class AllOfMnist(Mnist):
    """All 60,000 for training and the test part after every epoch, as open_lth does it: to compare speed only."""

    kind: Literal["benchmark-all-of-mnist"] = "benchmark-all-of-mnist"  # type: ignore[assignment]
    validation: int | None = 0

    def load(self, split: Split) -> Examples:
        return super().load("train" if split == "train" else "test")
