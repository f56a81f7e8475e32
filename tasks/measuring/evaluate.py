"""The task that measures a trained network."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from safetensors.torch import save
from torch import nn

from tasks.attacks import Attack
from tasks.component import kind_of
from tasks.data import Dataset, Examples
from tasks.data.splits import stratified
from tasks.device import device_of, settle
from tasks.measuring.masking import blind_spots, failures
from tasks.measuring.predictions import Predictions, predict
from tasks.measuring.robustness import Cascade
from tasks.models import Architecture
from tasks.models.weights import restore
from tasks.task import Context, Result, Stored, Task

FILES = {"last": "weights.safetensors", "best": "best.safetensors"}


class Evaluate(Task):
    """Clean and robust accuracy, loss and calibration of a trained network, with the outcome of every example.

    Robust accuracy starts from the examples that are right without attack. Epsilons rise over what still stands, and at
    each the attacks try in their order; an adversarial image counts once it is checked to lie in the ball and in [0, 1]
    and to be misclassified in float32.

    Input `trained` is a finished training. Metrics are `clean` (accuracy, loss, nll, ece, confidence), `robust` (for
    each epsilon its accuracy and the examples that each attack broke), `warnings`, the numbers of `examples` and of
    `correct` ones, and `cost`: images that went through the model, counted at every step.

    The file `outcomes.safetensors` holds for each example its `indices` in the split, `labels`, `predictions`,
    `correct`, `confidences`, `losses`, `broken_at` (smallest epsilon that broke it, infinite if none did, 0 if
    misclassified as it is) and `broken_by` (position in `attacks`, or -1).
    """

    kind: Literal["evaluate"] = "evaluate"
    data: Dataset
    """What to measure on."""
    architecture: Architecture
    """The network that the weights belong to."""
    split: Literal["validation", "test"] = "test"
    """Validation to choose by, test to report."""
    weights: Literal["last", "best"] = "last"
    """Those after the last step, or those of the best validation."""
    attacks: tuple[Attack, ...] = ()
    """Tried in this order at each epsilon; the cheap ones first save time."""
    epsilons: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Radii in input units, rising."""
    examples: int | None = Field(default=None, ge=1)
    """How many examples of the split, drawn evenly over its classes; all unless given."""
    seed: int = 0
    """Of the drawn examples and of the attacks' noise."""

    @model_validator(mode="after")
    def _attacks_fit_epsilons(self) -> Self:
        if bool(self.attacks) != bool(self.epsilons):
            raise ValueError("attacks and epsilons go together: give both, or neither for clean accuracy alone")
        for smaller, larger in zip(self.epsilons, self.epsilons[1:], strict=False):
            if larger <= smaller:
                raise ValueError(f"epsilons must rise, but {smaller} is followed by {larger}")
        norms = {attack.norm for attack in self.attacks}
        if len(norms) > 1:
            raise ValueError(
                f"attacks must share one norm, not {' and '.join(sorted(norms))}: an epsilon is a radius in it"
            )
        if "linf" in norms and self.epsilons[-1] > 1:
            raise ValueError(f"epsilon is {self.epsilons[-1]}, but images lie in [0, 1]: at most 1 in norm linf")
        return self

    def run(self, context: Context, **inputs: Stored) -> Result:
        """Measures the network of the input `trained`.

        Raises:
            ValueError: the weights do not fit the architecture, or the split has too few examples.
        """
        settle(self.threads)
        device = device_of(self.gpus)
        model = self._model(inputs["trained"], device)
        indices, examples = self._examples()
        predictions = predict(model, examples, device)
        saved = context.saved()
        cascade = (
            Cascade.begin(predictions.correct, len(self.epsilons), len(self.attacks))
            if saved is None
            else Cascade.from_bytes(saved)
        )

        def after_block(share: float) -> None:
            context.progress(int(share * len(examples)), len(examples))
            if context.should_save():
                context.save(cascade.to_bytes())

        cascade.run(model, examples, self.attacks, self.epsilons, self.seed, device, after_block)
        context.progress(len(examples), len(examples))
        warnings: list[str] = []
        if self.attacks:
            warnings += blind_spots(model, examples, predictions.correct, device)
            warnings += failures(cascade, self.attacks, self._names(), self.epsilons, examples.labels)
        metrics = {
            "examples": len(examples),
            "correct": int(predictions.correct.sum()),
            "clean": predictions.summary(),
            "robust": self._robust(cascade),
            "warnings": warnings,
            "cost": len(examples) + cascade.cost,
        }
        return Result(metrics, {"outcomes.safetensors": self._outcomes(cascade, examples, indices, predictions)})

    def _model(self, trained: Stored, device: torch.device) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # building draws initial weights, which are overwritten at once
            model = self.architecture.build(self.data.signature())
        restore(model, trained.read(FILES[self.weights]))
        return model.to(device).eval().requires_grad_(False)

    def _examples(self) -> tuple[torch.Tensor, Examples]:
        everything = self.data.load(self.split)
        if not len(everything):
            raise ValueError(f"the {self.split} split is empty: there is nothing to measure on")
        if self.examples is None:
            return torch.arange(len(everything)), everything
        if self.examples > len(everything):
            raise ValueError(f"examples is {self.examples}, but the {self.split} split holds {len(everything)}")
        indices = torch.from_numpy(stratified(everything.labels.numpy(), self.examples, self.seed, "examples"))
        return indices, Examples(everything.images[indices], everything.labels[indices])

    def _robust(self, cascade: Cascade) -> list[dict[str, Any]]:
        names = self._names()
        return [
            {
                "epsilon": epsilon,
                "accuracy": cascade.standing(level) / len(cascade.broken_level),
                "broken_by": {name: cascade.broken_by(level, turn) for turn, name in enumerate(names)},
            }
            for level, epsilon in enumerate(self.epsilons)
        ]

    def _names(self) -> list[str]:
        kinds = [kind_of(type(attack)) for attack in self.attacks]
        return [
            f"{kind}-{kinds[: turn + 1].count(kind)}" if kinds.count(kind) > 1 else kind
            for turn, kind in enumerate(kinds)
        ]

    def _outcomes(self, cascade: Cascade, examples: Examples, indices: torch.Tensor, predictions: Predictions) -> bytes:
        radii = torch.tensor([0.0, *self.epsilons, torch.inf])
        return save(
            {
                "indices": indices,
                "labels": examples.labels.clone(),
                "predictions": predictions.classes,
                "correct": predictions.correct,
                "confidences": predictions.confidences,
                "losses": predictions.losses,
                "broken_at": radii[cascade.broken_level + 1],
                "broken_by": cascade.broken_turn,
            }
        )
