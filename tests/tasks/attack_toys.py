"""Images with one strong, sometimes wrong feature and many weak ones (Tsipras et al. 2019), and nets to attack."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any, Literal

import torch
from torch import nn

from tasks.data import Dataset, Examples, Signature, Split
from tasks.models import Architecture
from tasks.models.network import Network
from tasks.models.weights import weights_to_bytes
from tasks.moment import Moment
from tasks.objectives import Objective
from tasks.objectives.pgd import PGD
from tasks.objectives.standard import Standard
from tasks.seeds import generator

EPSILON = 0.1
SIZES = {"train": 768, "validation": 150, "test": 300}


class TwoFeatures(Dataset):
    """Classes by a 3x3 patch, 0.2 or 0.8 and wrong once in 20, and by a tint of 0.05 of all other pixels."""

    kind: Literal["two-features"] = "two-features"

    def fingerprint(self) -> str:
        return hashlib.sha256(b"two-features").hexdigest()

    def signature(self) -> Signature:
        return Signature(1, 8, 8, 2, (0.5,), (0.25,))

    def load(self, split: Split) -> Examples:
        draw = generator("two-features", split)
        count = SIZES[split]
        labels = torch.arange(count) % 2
        sign = (2 * labels - 1).float()
        honest = torch.where(torch.rand(count, generator=draw) < 0.95, 1.0, -1.0)
        images = 0.5 + 0.05 * sign.view(-1, 1, 1, 1).expand(count, 1, 8, 8).clone()
        images[:, :, :3, :3] = 0.5 + 0.3 * (sign * honest).view(-1, 1, 1, 1)
        images += 0.06 * torch.randn(images.shape, generator=draw)
        return Examples((images.clamp(0, 1) * 255).round().to(torch.uint8), labels)


class SmallNet(Architecture):
    """A convolution, batch norm and a linear layer."""

    kind: Literal["two-features-net"] = "two-features-net"

    def build(self, data: Signature) -> nn.Module:
        output = nn.Linear(128, data.classes)
        body = nn.Sequential(
            nn.Conv2d(data.channels, 8, 4, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), output
        )
        return Network(data, body, output)


class Finished:
    """A finished step held in memory."""

    def __init__(self, **files: bytes) -> None:
        self.metrics: dict[str, Any] = {}
        self.files = files

    def read(self, name: str) -> bytes:
        return self.files[name]


class Interrupted(Exception):
    pass


class Stopping:
    """A context that keeps every state and ends the task at one save."""

    def __init__(self, state: bytes | None = None, stop_after: int = 10**9) -> None:
        self.states = [] if state is None else [state]
        self.saves_left = stop_after
        self.reported: list[tuple[int, int, str]] = []

    def saved(self) -> bytes | None:
        return self.states[-1] if self.states else None

    def should_save(self) -> bool:
        return True

    def save(self, state: bytes) -> None:
        self.states.append(state)
        self.saves_left -= 1
        if not self.saves_left:
            raise Interrupted

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.reported.append((done, total, note))


def pixels(split: Split = "test") -> tuple[torch.Tensor, torch.Tensor]:
    examples = TwoFeatures().load(split)
    return examples.images.float() / 255, examples.labels


def trained(objective: Objective, epochs: int = 12) -> nn.Module:
    """A net trained with this objective, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = SmallNet().build(TwoFeatures().signature())
    images, labels = pixels("train")
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    draw = generator("training")
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=draw).split(64):
            optimizer.zero_grad()
            objective.loss(net, images[rows], labels[rows], Moment(draw)).backward()
            optimizer.step()
    return net.eval()


@cache
def standard_net() -> nn.Module:
    return trained(Standard())


@cache
def robust_net() -> nn.Module:
    return trained(PGD(epsilon=EPSILON, steps=5))


def step_of(model: nn.Module) -> Finished:
    """The training that left this model, as its last and as its best weights."""
    content = weights_to_bytes(model)
    return Finished(**{"weights.safetensors": content, "best.safetensors": content})


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(dim=1) == labels).double().mean())
