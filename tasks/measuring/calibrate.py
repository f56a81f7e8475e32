"""The task that asks whether a network is as sure as it is right while it is attacked."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch.nn import functional as F

from tasks.attacks.ascent import ascend, cross_entropy_gradient
from tasks.attacks.ball import ball, require_radius
from tasks.attacks.draws import Draws
from tasks.component import require_rising
from tasks.data import Dataset
from tasks.device import device_of, settle
from tasks.measuring.calibration import confidences_apart
from tasks.measuring.predictions import BLOCK, images_at, require_answers
from tasks.measuring.robustness import seeded_model
from tasks.measuring.subject import choose_examples, load_model
from tasks.models import Architecture
from tasks.seeds import seed_of
from tasks.task import Context, Result, Stored, Task


class CalibrateAttacked(Task):
    """Accuracy, calibration error and confidence under an attack that makes the loss large (Grabinski et al. 2022).

    The attack is projected gradient descent to its last iterate on every example, right or wrong: an attack that ends
    as soon as it succeeds would only ever show the network images it is unsure of.

    Input `trained` is a finished training. The metric `levels` has an entry for epsilon 0 and each of the given ones,
    with `accuracy`, `ece` (15 bins; it says little where accuracy is below a half), `confidence`, `confidence_right`
    and `confidence_wrong`: mean probabilities of the predicted class, None where there is nothing to average.
    """

    kind: Literal["calibrate-attacked"] = "calibrate-attacked"
    data: Dataset
    """What to measure on."""
    architecture: Architecture
    """The network that the weights belong to."""
    split: Literal["validation", "test"] = "test"
    """Validation to choose by, test to report."""
    weights: Literal["last", "best"] = "last"
    """Those after the last step, or those of the best validation."""
    norm: Literal["linf", "l2"] = "linf"
    """Norm of the ball."""
    epsilons: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    """Radii in input units, rising."""
    steps: int = Field(default=20, ge=1)
    """Of the attack; each goes 2.5 / steps of epsilon."""
    examples: int | None = Field(default=None, ge=1)
    """How many examples of the split, drawn evenly over its classes; all unless given."""
    seed: int = 0
    """Of the drawn examples and of the attack's starts."""

    @model_validator(mode="after")
    def _epsilons_fit(self) -> Self:
        require_rising("epsilons", self.epsilons)
        require_radius(self.norm, self.epsilons[-1])
        return self

    def run(self, context: Context, **inputs: Stored) -> Result:
        """Measures the network of the input `trained`.

        Raises:
            ValueError: the weights do not fit the architecture, the split has too few examples, a label is none of the
                network's classes, or its logits are not finite.
        """
        settle(self.threads)
        device = device_of(self.gpus)
        model = load_model(self.architecture, self.data, inputs["trained"], self.weights, device)
        indices, examples = choose_examples(self.data, self.split, self.examples, self.seed)
        saved = context.saved()
        levels: list[dict[str, Any]] = json.loads(saved) if saved else []
        for place, epsilon in list(enumerate((0.0, *self.epsilons)))[len(levels) :]:
            logits = []
            for first in range(0, len(examples), BLOCK):
                rows = torch.arange(first, min(first + BLOCK, len(examples)))
                images, labels = images_at(examples, rows, device), examples.labels[rows].to(device)
                draws = Draws(seed_of(self.seed, "calibrate"), indices[rows].to(device))
                with seeded_model(device, self.seed, "calibrate", place, first), torch.no_grad():
                    if epsilon:
                        within = ball(self.norm, images, epsilon)
                        start = within.random(draws)
                        images = ascend(
                            cross_entropy_gradient(model, labels), start, within, 2.5 / self.steps * epsilon, self.steps
                        )
                    logits.append(model(images).double().cpu())
                context.progress(place * len(examples) + int(rows[-1]) + 1, (1 + len(self.epsilons)) * len(examples))
            answers = torch.cat(logits)
            require_answers(answers, examples.labels)
            found = _calibration(answers, examples.labels)
            levels.append({"epsilon": epsilon, **found, "cost": model.take()})
            if context.should_save():
                context.save(json.dumps(levels).encode())
        return Result({"examples": len(examples), "levels": levels, "cost": sum(level["cost"] for level in levels)})


def _calibration(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    confidences, classes = F.softmax(logits, dim=1).max(dim=1)
    correct = classes == labels
    apart = confidences_apart(confidences, correct)
    return {"accuracy": float(correct.double().mean()), "confidence": float(confidences.mean()), **apart}
