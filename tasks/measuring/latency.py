"""The task that measures how long a network takes."""

from __future__ import annotations

import time
from statistics import median, quantiles
from typing import Literal, Self

import torch
from pydantic import Field
from torch import nn

from tasks.data import Dataset
from tasks.device import device_of, settle
from tasks.measuring.evaluate import Evaluate
from tasks.measuring.subject import load_network
from tasks.models import Architecture
from tasks.seeds import generator
from tasks.task import Context, Result, Stored, Task

LEAST_SECONDS = 0.02
"""How long one repeat takes at least: enough forward passes for the clock and a busy machine not to matter much."""


class MeasureLatency(Task):
    """Seconds for an image of a forward pass through a trained network, as a median of repeats after a warm-up.

    Takes `trained`, the step that holds the network; what goes through it are random images of the data's shape. No
    two measurements give the same figure: what is stored, and what everything after it sees, was measured once, on
    whichever machine that was and beside whatever else ran there. Everything else that is computed here is bit-exact.
    Masks do not make a network faster: its kernels stay dense until a `compact` step makes them smaller.

    Metrics: `seconds` for an image, the `low` and `high` quartiles of its repeats, `batch`, and the `device` (the
    GPU's name, or `cpu`).
    """

    kind: Literal["latency"] = "latency"
    data: Dataset
    """Whose images it takes."""
    architecture: Architecture
    """The network that the weights belong to."""
    weights: Literal["last", "best"] = "last"
    """Those after the last step, or those of the best validation."""
    batch: int = Field(default=1, ge=1)
    """Images that go through together."""
    repeats: int = Field(default=15, ge=3)
    """How often it is measured."""
    gpus: float = Field(default=0, ge=0)
    """GPUs, or a fraction of one. Part of the identity, unlike that of other tasks: another device takes another time.
    """

    @classmethod
    def beside(cls, evaluation: Evaluate, batch: int) -> Self:
        """That of the network that an evaluation measures, where it is measured.

        Args:
            evaluation: the evaluation.
            batch: images that go through together.
        """
        return cls(
            data=evaluation.data,
            architecture=evaluation.architecture,
            weights=evaluation.weights,
            batch=batch,
            threads=evaluation.threads,
            gpus=evaluation.gpus,
        )

    def run(self, context: Context, **inputs: Stored) -> Result:
        """Times the network of the input `trained`.

        Raises:
            ValueError: the weights do not fit the architecture.
        """
        settle(self.threads)
        device = device_of(self.gpus)
        model = load_network(self.architecture, self.data, inputs["trained"], self.weights, device)
        shape = self.data.signature()
        size = (self.batch, shape.channels, shape.height, shape.width)
        images = torch.rand(size, generator=generator("latency")).to(device)
        passes = _passes(model, images)
        found = []
        for repeat in range(self.repeats):
            found.append(_seconds(model, images, passes) / (passes * self.batch))
            context.progress(repeat + 1, self.repeats)
        low, _, high = quantiles(found, n=4, method="inclusive")
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        return Result({"seconds": median(found), "low": low, "high": high, "batch": self.batch, "device": name})


def _passes(model: nn.Module, images: torch.Tensor) -> int:
    """How many forward passes take long enough, found by doubling them, which warms up as well."""
    passes = 1
    while _seconds(model, images, passes) < LEAST_SECONDS:
        passes *= 2
    return passes


@torch.inference_mode()
def _seconds(model: nn.Module, images: torch.Tensor, passes: int) -> float:
    """The time that so many forward passes take together."""
    _finish(images.device)
    begin = time.perf_counter()
    for _ in range(passes):
        model(images)
    _finish(images.device)
    return time.perf_counter() - begin


def _finish(device: torch.device) -> None:
    """Waits for what was sent to a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
