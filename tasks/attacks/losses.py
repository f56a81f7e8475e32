"""What gradient attacks climb: losses per example, and their gradients with respect to the images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From logits (N, K) and labels (N,) to (N,): the larger, the closer to a mistake."""


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The largest other logit minus that of the label: positive means misclassified (Carlini & Wagner 2017, f6)."""
    own, other = _own_and_other(logits, labels)
    return other - own


def dlr(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Difference of logits ratio: the margin over the distance from first to third (Croce & Hein 2020, equation 6).

    Needs three classes; with two there is no third, and the margin itself is taken.
    """
    if logits.shape[1] < 3:
        return margin(logits, labels)
    ordered = logits.topk(3, dim=1).values
    return margin(logits, labels) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


def targeted_dlr(logits: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The margin of one target over the distance from first to third and fourth (Croce & Hein 2020, equation 7).

    Needs four classes; with fewer the difference of the two logits itself is taken.
    """
    own, target = _at(logits, labels), _at(logits, targets)
    if logits.shape[1] < 4:
        return target - own
    ordered = logits.topk(4, dim=1).values
    return (target - own) / (ordered[:, 0] - 0.5 * (ordered[:, 2] + ordered[:, 3]) + 1e-12)


def climb(
    model: nn.Module, images: torch.Tensor, loss: Callable[[torch.Tensor], torch.Tensor], eot: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (N, K), losses (N,) and the gradient of their sum in the images' shape, all detached.

    Args:
        model: images to logits; its parameters get no gradient.
        images: (N, C, H, W).
        loss: logits to (N,).
        eot: forward passes whose losses and gradients are averaged, for models that draw random numbers (expectation
            over transformation, Athalye et al. 2018). The logits are then the logarithm of the summed probabilities.

    Where a model overflows and the gradient is not a number, it is zero: the image stays where it is, and in range.
    """
    images = images.detach().requires_grad_()
    logits, losses, gradients = [], [], []
    for _ in range(eot):
        with torch.enable_grad():
            found = model(images)
            each = loss(found)
        gradients.append(torch.autograd.grad(each.sum(), images)[0])
        logits.append(found.detach())
        losses.append(each.detach())
    if eot == 1:
        return logits[0], losses[0], gradients[0].nan_to_num()
    gradient = torch.stack(gradients).mean(dim=0).nan_to_num_()
    return _summed(logits), torch.stack(losses).mean(dim=0), gradient


def weigh(
    model: nn.Module, images: torch.Tensor, loss: Callable[[torch.Tensor], torch.Tensor], eot: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits and losses of `climb`, without the gradient."""
    with torch.no_grad():
        logits = [model(images) for _ in range(eot)]
        if eot == 1:
            return logits[0], loss(logits[0])
        return _summed(logits), torch.stack([loss(found) for found in logits]).mean(dim=0)


def surely_fooled(logits: torch.Tensor, labels: torch.Tensor, eot: int = 1) -> torch.Tensor:
    """Which examples are misclassified for good, (N,) bool: none of a model that needs several passes.

    To stop at the first mean that is wrong would be to stop at the boundary, where the next mean may be right again.
    """
    if eot > 1:
        return torch.zeros_like(labels, dtype=torch.bool)
    return logits.argmax(dim=1) != labels


def _summed(logits: list[torch.Tensor]) -> torch.Tensor:
    """The logarithm of the sum of the probabilities of several passes."""
    return torch.stack(logits).log_softmax(dim=2).logsumexp(dim=0)


def _at(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    return logits.gather(1, classes.unsqueeze(1)).squeeze(1)


def _own_and_other(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The label's logit and the largest of the others."""
    own = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, labels.unsqueeze(1), True)
    return _at(logits, labels), logits.masked_fill(own, -torch.inf).amax(dim=1)
