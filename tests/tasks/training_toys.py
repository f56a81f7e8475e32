"""A data set, a network and contexts so small that a whole training takes milliseconds."""

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import nn

from tasks.data import Dataset, Examples, Signature, Split
from tasks.models import Architecture
from tasks.models.network import Network
from tasks.models.weights import load_weights
from tasks.moment import Moment
from tasks.objectives import Objective
from tasks.objectives.standard import Standard
from tasks.optimizers.sgd import SGD
from tasks.pruning.mask import Mask
from tasks.seeds import generator
from tasks.task import Result
from tasks.training.train import Train

BATCHES = 6
"""Batches in an epoch of the toy data: five of 8 and one of 4."""


class Blobs(Dataset):
    """Four noisy patterns of 6 x 6 pixels."""

    kind: Literal["toy-blobs"] = "toy-blobs"
    constant: bool = False
    """Validation labels that no network can tell apart: every epoch scores the same."""

    def fingerprint(self) -> str:
        return "toy"

    def signature(self) -> Signature:
        return Signature(1, 6, 6, 4, (0.5,), (0.25,))

    def load(self, split: Split) -> Examples:
        count = {"train": 44, "validation": 40, "test": 4}[split]
        patterns = torch.randint(60, 196, (4, 1, 6, 6), generator=generator("patterns"))
        labels = torch.arange(count) % 4
        noise = torch.randint(-60, 60, (count, 1, 6, 6), generator=generator("noise", split))
        images = (patterns[labels] + noise).to(torch.uint8)
        if self.constant and split == "validation":
            images = images[:1].expand(count, -1, -1, -1).contiguous()
        return Examples(images, labels)


class Tiny(Architecture):
    """One convolution and two linear layers."""

    kind: Literal["toy-tiny"] = "toy-tiny"
    dropout: float = 0
    norm: bool = False

    def build(self, data: Signature) -> nn.Module:
        output = nn.Linear(12, data.classes)
        norm = nn.BatchNorm2d(3) if self.norm else nn.Identity()
        body = nn.Sequential(
            nn.Conv2d(data.channels, 3, 3),
            norm,
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(48, 12),
            nn.ReLU(),
            nn.Dropout(self.dropout),
            output,
        )
        return Network(data, body, output)


class Witness(Objective):
    """Cross-entropy that notes what every step was given."""

    kind: Literal["toy-witness"] = "toy-witness"
    seen: ClassVar[list[tuple[torch.Tensor, torch.Tensor, float, float]]] = []

    def loss(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, moment: Moment) -> torch.Tensor:
        own = torch.rand((), generator=moment.generator).item()
        self.seen.append((images.clone(), labels.clone(), own, torch.rand(()).item()))
        return Standard().loss(model, images, labels, moment)


class Loud(Objective):
    """Cross-entropy with gradients that overflow in half precision until the scaler has found its scale."""

    kind: Literal["toy-loud"] = "toy-loud"

    def loss(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, moment: Moment) -> torch.Tensor:
        return 20 * Standard().loss(model, images, labels, moment)


class Finished:
    """A finished step."""

    def __init__(self, metrics: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        self.metrics = metrics
        self.files = files

    def read(self, name: str) -> bytes:
        return self.files[name]


class Interrupted(BaseException):
    """The worker is gone."""


class Watch:
    """A context that saves after every step and pulls the plug after `saves` of them."""

    def __init__(self, state: bytes | None = None, saves: int | None = None) -> None:
        self.state = state
        self.left = saves

    def saved(self) -> bytes | None:
        return self.state

    def should_save(self) -> bool:
        return self.left is not None

    def save(self, state: bytes) -> None:
        assert self.left is not None
        self.left -= 1
        if self.left == 0:
            self.state = state
            raise Interrupted

    def progress(self, done: int, total: int, note: str = "") -> None:
        assert 0 <= done <= total


def toy(**fields: Any) -> Train:
    """A training of 18 steps, unless said otherwise."""
    return Train(
        **{
            "data": Blobs(),
            "architecture": Tiny(),
            "optimizer": SGD(learning_rate=0.05, momentum=0.9),
            "epochs": 3,
            "batch_size": 8,
            **fields,
        }
    )


def trained(task: Train, **inputs: Any) -> Finished:
    """The finished step of a task."""
    result: Result = task.run(Watch(), **inputs)
    return Finished(result.metrics, result.files)


def history(step: Finished) -> list[dict[str, Any]]:
    """An entry for each epoch of a training."""
    return [json.loads(line) for line in step.read("history.jsonl").splitlines()]


def resumed(task: Train, interruptions: list[int], inputs: dict[str, Any]) -> Result:
    """The result after the worker went away at these numbers of saves, its global generators elsewhere each time."""
    state = None
    for saves in interruptions:
        torch.manual_seed(saves)
        watch = Watch(state, saves)
        with pytest.raises(Interrupted):
            task.run(watch, **inputs)
        state = watch.state
    torch.manual_seed(99)
    return task.run(Watch(state), **inputs)


def half_mask(step: Finished) -> Finished:
    """A mask that keeps about half of every kernel, chosen at random."""
    kernels = load_weights(step.read("weights.safetensors")).kernels()
    chance = generator("half")
    mask = Mask({name: torch.rand(kernel.shape, generator=chance) < 0.5 for name, kernel in kernels.items()})
    return Finished(mask.summary(), {"mask.safetensors": mask.to_bytes()})
