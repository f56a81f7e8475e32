"""The task that measures what common corruptions do to a trained network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from safetensors.torch import load, save
from torch import nn

from tasks.attacks.draws import Draws
from tasks.component import kind_of, require_rising
from tasks.corruptions import BENCHMARK, SEVERITIES, Corruption, benchmark
from tasks.data import Dataset, Examples
from tasks.device import device_of, settle
from tasks.measuring.calibration import confidences_apart
from tasks.measuring.intervals import accuracy_of
from tasks.measuring.predictions import Predictions, predict
from tasks.measuring.robustness import seeded_model
from tasks.measuring.subject import choose_examples, load_model
from tasks.models import Architecture
from tasks.task import Context, Result, Stored, Task

TOGETHER = 512
"""Examples that are corrupted at once; changes nothing but the memory that it takes."""


class EvaluateCorrupted(Task):
    """Accuracy and calibration under common corruptions, C-like (Hendrycks & Dietterich 2019).

    The images are corrupted here, each from the seed, its index in the split, the corruption and the severity alone.
    They are not those of CIFAR-10-C, and the figures are not comparable with published ones (`tasks.corruptions`).

    Input `trained` is a finished training. Metrics are `clean` (accuracy, its 95 % interval, loss, nll, ece,
    confidence), `corruptions`, and `mean`: the accuracy over all severities of the fifteen benchmark corruptions, None
    if not all of these were measured. `mean_given` is that over whatever was. For each corruption by its kind there are
    its mean `accuracy` and `severities`: for each the number of `correct` examples, `accuracy`, `low` and `high` (95 %
    interval), `ece`, and the mean confidences `confidence_right` and `confidence_wrong`, None where there is nothing to
    average. `examples` is their number, `correct` that of the clean ones that are right, `cost` the images that went
    through the network.

    The file `outcomes.safetensors` holds the examples' `indices` in the split, `labels`, `clean_correct` and
    `clean_confidences` (N,), and `correct` and `confidences` (K, S, N) in the order of the fields.
    """

    kind: Literal["evaluate-corrupted"] = "evaluate-corrupted"
    data: Dataset
    """What to measure on."""
    architecture: Architecture
    """The network that the weights belong to."""
    split: Literal["validation", "test"] = "test"
    """Validation to choose by, test to report."""
    weights: Literal["last", "best"] = "last"
    """Those after the last step, or those of the best validation."""
    corruptions: tuple[Corruption, ...] = Field(default_factory=benchmark, min_length=1)
    """What to corrupt the images with; the fifteen benchmark corruptions unless given."""
    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = Field(default=SEVERITIES, min_length=1)
    """How much, rising."""
    examples: int | None = Field(default=None, ge=1)
    """How many examples of the split, drawn evenly over its classes; all unless given."""
    seed: int = 0
    """Of the drawn examples and of the corruptions."""

    @model_validator(mode="after")
    def _each_is_given_once(self) -> Self:
        require_rising("severities", self.severities)
        kinds = self._kinds()
        if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
            raise ValueError(f"corruptions must differ, but {', '.join(twice)} is given more than once")
        return self

    def identity(self) -> dict[str, Any]:
        """The configuration; corruptions are named even where they are the default, since each has a version."""
        return {**super().identity(), "corruptions": [corruption.identity() for corruption in self.corruptions]}

    def run(self, context: Context, **inputs: Stored) -> Result:
        """Measures the network of the input `trained`.

        Raises:
            ValueError: the weights do not fit the architecture, the split has too few examples, or its images cannot
                be corrupted.
        """
        settle(self.threads)
        device = device_of(self.gpus)
        model = load_model(self.architecture, self.data, inputs["trained"], self.weights, device)
        indices, examples = choose_examples(self.data, self.split, self.examples, self.seed)
        clean = self._answers(model, examples, device, "clean")
        pairs = [(corruption, severity) for corruption in self.corruptions for severity in self.severities]
        saved = context.saved()
        outcomes = _Outcomes.begin(len(pairs), len(examples)) if saved is None else _Outcomes.from_bytes(saved)
        draws = Draws(self.seed, indices)
        for corruption, severity in pairs[outcomes.done :]:
            name = kind_of(type(corruption))
            context.progress(outcomes.done, len(pairs), f"{name} {severity}")
            corrupted = Examples(_corrupted(examples.images, corruption, severity, draws), examples.labels)
            outcomes.note(self._answers(model, corrupted, device, f"{name}/{severity}"))
            if context.should_save():
                context.save(outcomes.to_bytes())
        context.progress(len(pairs), len(pairs))
        shape = (len(self.corruptions), len(self.severities), len(examples))
        correct, confidences = outcomes.correct.view(shape), outcomes.confidences.view(shape)
        tensors = {
            "indices": indices,
            "labels": examples.labels.clone(),
            "clean_correct": clean.correct,
            "clean_confidences": clean.confidences,
            "correct": correct,
            "confidences": confidences,
        }
        metrics = {
            "examples": len(examples),
            "correct": int(clean.correct.sum()),
            "clean": {**clean.summary(), **accuracy_of(clean.correct)},
            **self._under_corruption(correct, confidences),
            "cost": (1 + len(pairs)) * len(examples),
        }
        return Result(metrics, {"outcomes.safetensors": save(tensors)})

    def _answers(self, model: nn.Module, examples: Examples, device: torch.device, images: str) -> Predictions:
        with seeded_model(device, self.seed, "model", images):
            return predict(model, examples, device)

    def _kinds(self) -> list[str]:
        return [kind_of(type(corruption)) for corruption in self.corruptions]

    def _under_corruption(self, correct: torch.Tensor, confidences: torch.Tensor) -> dict[str, Any]:
        """The metrics that follow from the outcomes, (K, S, N) each."""
        accuracies = correct.double().mean(dim=(1, 2))
        kinds = self._kinds()
        listed = [kinds.index(kind) for kind in BENCHMARK if kind in kinds]
        is_whole = len(listed) == len(BENCHMARK) and self.severities == SEVERITIES
        return {
            "corruptions": {
                kind: {
                    "accuracy": float(accuracies[place]),
                    "severities": [
                        {"severity": severity, **_cell(correct[place, level], confidences[place, level])}
                        for level, severity in enumerate(self.severities)
                    ],
                }
                for place, kind in enumerate(kinds)
            },
            "mean": float(accuracies[listed].mean()) if is_whole else None,
            "mean_given": float(accuracies.mean()),
        }


@dataclass
class _Outcomes:
    """The whole state: what became of each of N examples under P pairs of a corruption and a severity."""

    correct: torch.Tensor
    """(P, N) bool."""
    confidences: torch.Tensor
    """(P, N) float32."""
    done: int = 0
    """Finished pairs."""

    @classmethod
    def begin(cls, pairs: int, examples: int) -> _Outcomes:
        return cls(torch.zeros(pairs, examples, dtype=torch.bool), torch.zeros(pairs, examples))

    def note(self, predictions: Predictions) -> None:
        """The answers under the next pair."""
        self.correct[self.done] = predictions.correct
        self.confidences[self.done] = predictions.confidences
        self.done += 1

    def to_bytes(self) -> bytes:
        return save({"correct": self.correct, "confidences": self.confidences, "done": torch.tensor(self.done)})

    @classmethod
    def from_bytes(cls, state: bytes) -> _Outcomes:
        tensors = load(state)
        return cls(tensors["correct"], tensors["confidences"], int(tensors["done"]))


def _corrupted(images: torch.Tensor, corruption: Corruption, severity: int, draws: Draws) -> torch.Tensor:
    parts = torch.split(torch.arange(len(images)), TOGETHER)
    return torch.cat([corruption.corrupt(images[rows], severity, draws.at(rows)) for rows in parts])


def _cell(correct: torch.Tensor, confidences: torch.Tensor) -> dict[str, Any]:
    """The figures of one corruption at one severity."""
    return {"correct": int(correct.sum()), **accuracy_of(correct), **confidences_apart(confidences, correct)}
