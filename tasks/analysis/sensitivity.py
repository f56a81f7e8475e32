"""The task that asks which layers of a network make small changes of its images large."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Self, cast

import torch
from pydantic import Field, model_validator
from safetensors.torch import load, save
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.ball import require_radius
from tasks.attacks.draws import Draws
from tasks.attacks.pgd import PGD
from tasks.attacks.transfer import Transfer
from tasks.data import Dataset
from tasks.device import device_of, settle
from tasks.measuring.gauge import MULTIPLE, Gauge
from tasks.measuring.predictions import BLOCK, images_at, predict, require_answers
from tasks.measuring.robustness import seeded_model
from tasks.measuring.subject import FILES, choose_examples, load_model
from tasks.models import Architecture
from tasks.models.network import Network
from tasks.models.weights import load_weights
from tasks.seeds import seed_of
from tasks.task import Context, Result, Stored, Task

Watch = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Is told which kernel was applied, to what and with what result."""


class FilterSensitivity(Task):
    """How much each layer of a network amplifies an attack on its images (after Sridhar et al. 2022, arXiv 2206.06496).

    Every example is attacked, right or wrong. With `h` the output of a layer, `g` its input and `d` the attack's change
    of the image, all lengths Euclidean:

    - `gain` is the mean over images of `|h(x + d) - h(x)| / |g(x + d) - g(x)|`, over those whose input changed;
    - `change` is the mean of `|h(x + d) - h(x)| / |h(x)|`, over those whose output is not zero.

    Input `trained` is a finished training. The metric `layers` has an entry for each prunable kernel, in the order of
    their first use, with `layer` (the kernel's name), `uses` (in one pass; the lengths are those over all uses
    together), `gain` and `change`, None where there is no image to average over, and the numbers of images that were,
    `gain_examples` and `change_examples`. Kernels that were applied to no image come last, with 0 uses.

    The metric `filters` is of the first layer: its `layer`, the sum `l1` of each filter's absolute weights in units of
    the images, so with the normalisation before it, their `mean` and their `max`. That sum is by how much an output can
    change at most, per unit of an L-inf change of the image. None if that layer sees something else than normalised
    images. `examples` is the number of images, `accuracy` that without attack, and `cost` the images that went through
    the network.
    """

    kind: Literal["filter-sensitivity"] = "filter-sensitivity"
    data: Dataset
    """What to measure on."""
    architecture: Architecture
    """The network that the weights belong to."""
    split: Literal["validation", "test"] = "test"
    """Validation to choose by, test to report."""
    weights: Literal["last", "best"] = "last"
    """Those after the last step, or those of the best validation."""
    attack: Attack = PGD(steps=20)
    """What changes the images."""
    epsilon: float = Field(gt=0)
    """Radius of the attack, in input units and in its norm."""
    examples: int | None = Field(default=None, ge=1)
    """How many examples of the split, drawn evenly over its classes; all unless given."""
    seed: int = 0
    """Of the drawn examples and of the attack's noise."""

    @model_validator(mode="after")
    def _attack_fits(self) -> Self:
        require_radius(self.attack.norm, self.epsilon)
        if any(isinstance(part, Transfer) for part in self.attack.parts()):
            raise ValueError("attack: `transfer` needs another network, and filter-sensitivity is given one only")
        return self

    def run(self, context: Context, **inputs: Stored) -> Result:
        """Measures the network of the input `trained`.

        Raises:
            ValueError: the weights do not fit the architecture, the split has too few examples, a label is none of the
                network's classes, or its logits are not finite.
        """
        settle(self.threads)
        device = device_of(self.gpus)
        trained = inputs["trained"]
        model = load_model(self.architecture, self.data, trained, self.weights, device)
        # By name, since on a CPU the first convolution has been replaced by one of another class.
        kernels = load_weights(trained.read(FILES[self.weights])).prunable
        indices, examples = choose_examples(self.data, self.split, self.examples, self.seed)
        accuracy = predict(model, examples, device).summary()["accuracy"]
        clean = model.take()
        saved = context.saved()
        found = _Found.begin(len(kernels)) if saved is None else _Found.from_bytes(saved)
        for first in range(found.lengths.shape[2], len(examples), BLOCK):
            rows = torch.arange(first, min(first + BLOCK, len(examples)))
            images, labels = images_at(examples, rows, device), examples.labels[rows].to(device)
            draws = Draws(seed_of(self.seed, "sensitivity"), indices[rows].to(device))
            with seeded_model(device, self.seed, "sensitivity", first):
                perturbed = self.attack.perturb(model, images, labels, self.epsilon, draws)
                found.add(_lengths(model, kernels, images, perturbed, labels))
            found.cost += model.take()
            context.progress(int(rows[-1]) + 1, len(examples))
            if context.should_save():
                context.save(found.to_bytes())
        used = list(dict.fromkeys(found.calls))
        layers = [_layer(kernels[place], found, place) for place in used]
        layers += [_layer(kernel, found, place) for place, kernel in enumerate(kernels) if place not in used]
        image = images_at(examples, torch.arange(1), device)
        metrics = {
            "examples": len(examples),
            "accuracy": accuracy,
            "layers": layers,
            "filters": _filters(cast(Network, model.model), kernels[used[0]], image) if used else None,
            "cost": clean + found.cost,
        }
        return Result(metrics)


@dataclass
class _Found:
    """What is known of the images so far."""

    lengths: torch.Tensor
    """(K, 3, N) float64: for each kernel the change of its input, that of its output, and its output."""
    calls: list[int]
    """The kernels in the order in which a pass applies them."""
    cost: int = 0

    @classmethod
    def begin(cls, kernels: int) -> Self:
        """Nothing yet."""
        return cls(torch.empty(kernels, 3, 0, dtype=torch.float64), [])

    def add(self, watched: _Watched) -> None:
        """Takes down the next images."""
        self.lengths = torch.cat([self.lengths, watched.squares.sqrt().cpu()], dim=2)
        self.calls = watched.calls

    def to_bytes(self) -> bytes:
        """The state for a checkpoint."""
        calls, cost = torch.tensor(self.calls, dtype=torch.int64), torch.tensor(self.cost)
        return save({"lengths": self.lengths, "calls": calls, "cost": cost})

    @classmethod
    def from_bytes(cls, state: bytes) -> Self:
        """The state of a checkpoint."""
        found = load(state)
        return cls(found["lengths"], found["calls"].tolist(), int(found["cost"]))


@dataclass
class _Watched:
    """What one pass over n images and their perturbed twins leaves."""

    squares: torch.Tensor
    """(K, 3, n) float64: the squares of the lengths."""
    calls: list[int] = field(default_factory=list)


def _lengths(
    model: Gauge, kernels: tuple[str, ...], images: torch.Tensor, perturbed: torch.Tensor, labels: torch.Tensor
) -> _Watched:
    """Sends images (n, C, H, W) and their twins through the model together, so that no layer's features are kept."""
    count = len(images)
    rows = -(-2 * count // MULTIPLE) * MULTIPLE  # the gauge fills up its batches
    watched = _Watched(torch.zeros(len(kernels), 3, count, dtype=torch.float64, device=images.device))

    def watch(place: int, given: torch.Tensor, output: torch.Tensor) -> None:
        if len(given) % rows:  # not of images, as the table of relative positions in some transformers
            return
        watched.calls.append(place)
        ends = [features.reshape(rows, -1)[: 2 * count] for features in (given, output)]
        changes = [end[count:] - end[:count] for end in ends]
        for square, features in zip(watched.squares[place], (*changes, ends[1][:count]), strict=True):
            square += torch.linalg.vector_norm(features, dim=1, dtype=torch.float64).square()

    with torch.no_grad(), _applied(model.model, kernels, watch):
        logits = model(torch.cat([images, perturbed]))
    require_answers(logits.cpu(), labels.cpu())
    return watched


@contextmanager
def _applied(model: nn.Module, kernels: tuple[str, ...], watch: Watch) -> Iterator[None]:
    """Calls `watch(place, input, output)` after every use of one of these kernels."""

    def hook(place: int) -> Any:
        return lambda _, given, output: watch(place, given[0], output)

    hooks = [
        model.get_submodule(kernel.removesuffix(".weight")).register_forward_hook(hook(place))
        for place, kernel in enumerate(kernels)
    ]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def _layer(kernel: str, found: _Found, place: int) -> dict[str, Any]:
    moved, change, size = found.lengths[place]
    return {
        "layer": kernel,
        "uses": found.calls.count(place),
        "gain": _mean_ratio(change, moved),
        "gain_examples": int((moved > 0).sum()),
        "change": _mean_ratio(change, size),
        "change_examples": int((size > 0).sum()),
    }


def _mean_ratio(lengths: torch.Tensor, to: torch.Tensor) -> float | None:
    """Over the images where there is something to relate to."""
    there = to > 0
    return float((lengths[there] / to[there]).mean()) if there.any() else None


def _filters(network: Network, kernel: str, image: torch.Tensor) -> dict[str, Any] | None:
    """The filters of the first layer in units of the image's values, if normalised images are what it sees."""
    seen: list[torch.Tensor] = []
    with torch.no_grad(), _applied(network, (kernel,), lambda _, given, __: seen.append(given)):
        network(image)
        normalised = network.normalise.forward(image)  # and nothing that hooks add to it
    weights = network.get_parameter(kernel).detach().double()
    of_all_values = weights.dim() == 4 or weights.shape[1] == normalised.numel()
    if not of_all_values or not torch.equal(seen[0].flatten(), normalised.flatten()):
        return None
    channels = normalised.shape[1]
    seen_by_each = weights.shape[1] if weights.dim() == 4 else channels
    weights = weights.reshape(len(weights), seen_by_each, -1)
    groups = channels // seen_by_each
    deviations = network.normalise.std.double().view(groups, 1, -1).expand(-1, len(weights) // groups, -1)
    weights = weights / deviations.flatten(0, 1).unsqueeze(2)
    if image.shape[1] < channels:  # one grey value is given to all of them
        weights = weights.sum(dim=1, keepdim=True)
    sums = weights.abs().sum(dim=(1, 2))
    return {"layer": kernel, "l1": sums.tolist(), "mean": float(sums.mean()), "max": float(sums.max())}
