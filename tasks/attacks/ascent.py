"""The loop that gradient attacks and adversarial objectives share: climb the loss within a ball."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from tasks.attacks.ball import Ball

Gradient = Callable[[torch.Tensor], torch.Tensor]
"""From images that require a gradient to the gradient of what is to grow, in their shape."""


def ascend(
    gradient_of: Gradient, start: torch.Tensor, within: Ball, step: float | torch.Tensor, steps: int
) -> torch.Tensor:
    """Projected steepest ascent with a fixed step; returns the last iterate, detached.

    Nothing is tracked, dropped or read back from the device: this is the inner loop of training.

    Args:
        gradient_of: what to climb. Gradients reach the images alone; those of the parameters stay as they are.
        start: (N, C, H, W), the first iterate; it is overwritten.
        within: the balls to stay in.
        step: length of a step in input units and in the ball's norm, a number or (N, 1, 1, 1).
        steps: number of steps.
    """
    images = start.detach()
    for _ in range(steps):
        images.requires_grad_()
        with torch.enable_grad():
            gradient = gradient_of(images)
        within.step_(images, gradient, step)
    return images.requires_grad_(False)


def cross_entropy_gradient(model: nn.Module, labels: torch.Tensor) -> Gradient:
    """The gradient of the cross-entropy, summed over examples so that a large batch does not shrink it."""

    def gradient_of(images: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(model(images), labels, reduction="sum")
        return torch.autograd.grad(loss, images)[0]

    return gradient_of


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while: running statistics stay still. Every module gets its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
