"""What a model says about images as they are, example by example."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from tasks.data import Examples
from tasks.measuring.calibration import expected_calibration_error

BLOCK = 128
"""Examples that go through the model together.

Fixed, because another batch size adds floats in another order: no result may depend on how much memory there is.
"""


@dataclass(frozen=True)
class Predictions:
    """A model's answers to N examples, on the CPU."""

    classes: torch.Tensor
    """(N,) int64, the predicted class."""
    confidences: torch.Tensor
    """(N,) float32, its probability."""
    losses: torch.Tensor
    """(N,) float32, cross-entropy in nats."""
    correct: torch.Tensor
    """(N,) bool."""

    def summary(self) -> dict[str, float]:
        """Accuracy, mean cross-entropy, calibration error over 15 bins, and mean confidence.

        The cross-entropy goes by the names it is looked up by: `loss` in training, `nll` in calibration.
        """
        cross_entropy = float(self.losses.double().mean())
        return {
            "accuracy": float(self.correct.double().mean()),
            "loss": cross_entropy,
            "nll": cross_entropy,
            "ece": expected_calibration_error(self.confidences, self.correct),
            "confidence": float(self.confidences.double().mean()),
        }


def predict(model: nn.Module, examples: Examples, device: torch.device, votes: int = 1) -> Predictions:
    """The model's answers in the order of the examples.

    Args:
        model: in evaluation mode, on `device`.
        examples: at least one.
        device: where to compute.
        votes: forward passes whose mean probabilities are the answer, for a model that draws random numbers.

    Raises:
        ValueError: a logit is not finite, or a label is none of the model's classes.
    """
    blocks = []
    for first in range(0, len(examples), BLOCK):
        rows = torch.arange(first, min(first + BLOCK, len(examples)))
        with torch.no_grad():
            images = images_at(examples, rows, device)
            answers = torch.stack([model(images).double().cpu() for _ in range(votes)])
            blocks.append(answers[0] if votes == 1 else answers.log_softmax(dim=2).logsumexp(dim=0))
    logits = torch.cat(blocks)
    require_answers(logits, examples.labels)
    confidences, classes = logits.softmax(dim=1).max(dim=1)
    losses = F.cross_entropy(logits, examples.labels, reduction="none")
    return Predictions(classes, confidences.float(), losses.float(), classes == examples.labels)


def require_answers(logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Refuses logits (N, K) that cannot be judged by labels (N,).

    Raises:
        ValueError: a logit is not finite, or a label is none of the model's classes.
    """
    if broken := int((~logits.isfinite()).any(dim=1).sum()):
        raise ValueError(f"the model's logits are not finite on {broken} of {len(logits)} images; was it trained?")
    if (highest := int(labels.amax())) >= logits.shape[1]:
        raise ValueError(f"label {highest} is none of the model's {logits.shape[1]} classes")


def images_at(examples: Examples, rows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Some of the images as (n, C, H, W) float32 in [0, 1]."""
    return examples.images[rows].to(device).float().div_(255)
