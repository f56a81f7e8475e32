"""The task that walks the straight line between two networks and looks for a barrier on it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from tasks.data import Dataset, Examples
from tasks.device import device_of, settle
from tasks.measuring.gauge import Gauge
from tasks.measuring.predictions import BLOCK, images_at, predict
from tasks.measuring.subject import FILES, choose_examples, load_model
from tasks.models import Architecture
from tasks.models.weights import load_weights, restore
from tasks.task import Context, Result, Stored, Task

STABLE = 0.02
"""The error barrier below which two networks count as linearly connected (Frankle et al. 2020)."""


class Interpolate(Task):
    """Error and loss along the line between two networks: instability analysis (Frankle et al. 2020, arXiv 1912.05671).

    Takes the trainings `first` and `second`, and measures `(1 - alpha) first + alpha second` at evenly spaced `alphas`
    from 0 to 1, parameters and buffers alike. Metrics, all errors in [0, 1]:

    - `errors` and `losses` (mean cross-entropy), one of each for every alpha;
    - `error_barrier`, the largest error less the mean of those at the two ends (Frankle et al. 2020);
    - `loss_barrier`, by how much the loss at most rises above the line between its ends (Entezari et al. 2022);
    - `barrier_at`, the alpha of the largest error, the smallest of equals;
    - `stable`, whether the error barrier is below two points (Frankle et al. 2020);
    - `distance`, the Euclidean length of the line over all parameters;
    - `examples`, the number of images, and `cost`, how often one went through a network.

    A barrier is the highest of the points that were looked at: another number of them may find another one.
    """

    kind: Literal["interpolate"] = "interpolate"
    data: Dataset
    """What to measure on."""
    architecture: Architecture
    """Both networks."""
    split: Literal["train", "validation", "test"] = "test"
    """Which part of the data."""
    weights: Literal["last", "best"] = "last"
    """Those after the last step of each training, or those of its best validation."""
    points: int = Field(default=30, ge=3)
    """How many, both ends included (30 in Frankle et al. 2020)."""
    examples: int | None = Field(default=None, ge=1)
    """How many examples of the split, drawn evenly over its classes; all unless given."""
    recalibrate: int | None = Field(default=None, ge=2)
    """Take the statistics of batch norms anew at every point, from so many training examples drawn evenly over the
    classes (Jordan et al. 2023); they are interpolated unless given."""
    seed: int = Field(default=0, ge=0)
    """Of the drawn examples."""

    def run(self, context: Context, **inputs: Stored) -> Result:
        """Measures the line from `first` to `second`.

        Raises:
            ValueError: weights do not fit the architecture, a split has too few examples, logits are not finite, or
                there are no batch norms to recalibrate.
        """
        settle(self.threads)
        device = device_of(self.gpus)
        model = load_model(self.architecture, self.data, inputs["first"], self.weights, device)
        ends = [_tensors(inputs[name].read(FILES[self.weights]), model.model) for name in ("first", "second")]
        norms = batch_norms(model.model)
        if self.recalibrate is not None and not norms:
            raise ValueError("recalibrate: the network has no batch norms")
        _, examples = choose_examples(self.data, self.split, self.examples, self.seed)
        recent = self._recalibration()
        saved = context.saved()
        walk = _Walk() if saved is None else _Walk(**json.loads(saved))
        alphas = torch.linspace(0, 1, self.points, dtype=torch.float64).tolist()
        for alpha in alphas[len(walk.errors) :]:
            model.model.load_state_dict({name: between(ends[0][name], ends[1][name], alpha) for name in ends[0]})
            if recent is not None:
                _recalibrate(model, norms, recent, device)
            found = predict(model, examples, device).summary()
            walk.errors.append(1 - found["accuracy"])
            walk.losses.append(found["loss"])
            walk.cost += model.take()
            context.progress(len(walk.errors), len(alphas))
            if context.should_save():
                context.save(json.dumps(asdict(walk)).encode())
        parameters = {name for name, _ in model.model.named_parameters()}
        metrics = {
            "alphas": alphas,
            "errors": walk.errors,
            "losses": walk.losses,
            **barriers(alphas, walk.errors, walk.losses),
            "distance": length([ends[1][name].double() - ends[0][name].double() for name in sorted(parameters)]),
            "examples": len(examples),
            "cost": walk.cost,
        }
        return Result(metrics)

    def _recalibration(self) -> Examples | None:
        """The training examples that batch norms are to take their statistics from."""
        if self.recalibrate is None:
            return None
        _, examples = choose_examples(self.data, "train", self.recalibrate, self.seed)
        return examples


@dataclass
class _Walk:
    """What is known of the line so far."""

    errors: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    cost: int = 0


def between(first: torch.Tensor, second: torch.Tensor, alpha: float) -> torch.Tensor:
    """`(1 - alpha) first + alpha second`, exact at both ends; counters, which are whole numbers, are the first's."""
    if not first.is_floating_point():
        return first
    return ((1 - alpha) * first.double() + alpha * second.double()).to(first.dtype)


def barriers(alphas: list[float], errors: list[float], losses: list[float]) -> dict[str, Any]:
    """Both barriers of a line by their names in the metrics of `Interpolate`.

    Args:
        alphas: rising from 0 to 1.
        errors: at each, in [0, 1].
        losses: at each.
    """
    error = max(errors) - (errors[0] + errors[-1]) / 2
    above = [loss - ((1 - alpha) * losses[0] + alpha * losses[-1]) for alpha, loss in zip(alphas, losses, strict=True)]
    return {
        "error_barrier": error,
        "loss_barrier": max(0.0, *above[1:-1]),
        "barrier_at": alphas[errors.index(max(errors))],
        "stable": error < STABLE,
    }


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The norms of a network whose statistics come from batches."""
    return [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


def length(parts: list[torch.Tensor]) -> float:
    """The Euclidean length of tensors taken together."""
    return float(torch.stack([part.double().square().sum() for part in parts]).sum().sqrt())


def _tensors(content: bytes, model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a weights file, which must be those of the model."""
    restore(model, content)
    return dict(load_weights(content).tensors)


def _recalibrate(
    model: Gauge, norms: list[nn.modules.batchnorm._BatchNorm], examples: Examples, device: torch.device
) -> None:
    """Replaces the running statistics by their means over batches of these examples; everything else stays."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    # Batches of equal size weigh the same; a single example left over would have no variance.
    for rows in torch.arange(len(examples)).tensor_split(-(-len(examples) // BLOCK)):
        with torch.no_grad():
            model.model(images_at(examples, rows, device))
    model.seen += len(examples)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
