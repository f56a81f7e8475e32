"""Clean accuracy on held-out examples, cheap enough to measure every epoch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from tasks.data import Examples
from tasks.data.batches import in_order

BATCH_SIZE = 1000
"""Large batches are fast; the number is fixed because another would add floats in another order."""


@dataclass(frozen=True)
class Score:
    """How a model does on some examples."""

    accuracy: float
    """Share classified correctly."""
    loss: float
    """Mean cross-entropy in nats."""


def validate(model: nn.Module, examples: Examples, device: torch.device) -> Score:
    """Measures a model in evaluation mode and full precision; its mode is left as it was."""
    mode = model.training
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    with torch.inference_mode():
        for images, labels in in_order(examples, BATCH_SIZE, device):
            logits = model(images)
            correct += (logits.argmax(1) == labels).sum()
            loss += F.cross_entropy(logits, labels, reduction="sum")
    model.train(mode)
    return Score(correct.item() / len(examples), loss.item() / len(examples))
