"""How saliencies that look at examples draw them and take gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

import torch
from torch.nn import functional as F

from tasks.data import Examples
from tasks.data.splits import stratified
from tasks.measuring.predictions import BLOCK, images_at, require_answers
from tasks.models.prunable import prunable
from tasks.pruning import Saliency
from tasks.pruning.candidate import Candidate

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images (n, C, H, W) in [0, 1] and labels (n,) int64, on the device of the model."""


class MagnitudeTimesGradient(Saliency):
    """The product |w g|, to first order by how much the loss changes without the weight."""

    sees: ClassVar = "data"
    draws: ClassVar = True

    examples: int | None
    """How many training images, drawn evenly over the classes; all if `null`."""

    def check(self, examples: Examples) -> None:
        """Counts the examples."""
        require_examples(self.examples, examples)

    def score(self, network: Candidate) -> dict[str, torch.Tensor]:
        """The product |w g| for every weight, float64.

        Raises:
            ValueError: there are fewer training examples.
        """
        gradients = mean_gradient(network, batches(network, drawn(network, self.examples)))
        return {name: (network.weights[name] * gradient).abs() for name, gradient in gradients.items()}

    def sample_steps(self, examples: Examples) -> int:
        """One pass over the examples."""
        return self.examples or len(examples)


def drawn(network: Candidate, examples: int | None) -> torch.Tensor:
    """Places of so many training examples, drawn evenly over the classes, or of all of them: (n,) int64, ascending.

    Raises:
        ValueError: there are fewer training examples.
    """
    if examples is None:
        return torch.arange(len(network.examples))
    require_examples(examples, network.examples)
    return torch.from_numpy(stratified(network.examples.labels.numpy(), examples, fresh_seed(network), "saliency"))


def require_examples(examples: int | None, available: Examples) -> None:
    """Checks that so many can be drawn.

    Raises:
        ValueError: there are fewer.
    """
    if examples is not None and examples > len(available):
        raise ValueError(f"saliency: examples is {examples}, but the training split holds {len(available)}")


def fresh_seed(network: Candidate) -> int:
    """The next seed that the generator of this pruning gives."""
    return int(torch.randint(2**62, (), generator=network.generator))


def batches(network: Candidate, rows: torch.Tensor) -> Iterator[Batch]:
    """The training examples at these places, in blocks of a fixed size: memory is no part of what a score means."""
    device = next(network.model.parameters()).device
    for block in torch.split(rows, BLOCK):
        yield images_at(network.examples, block, device), network.examples.labels[block].to(device)


def mean_gradient(network: Candidate, examples: Iterable[Batch], temperature: float = 1) -> dict[str, torch.Tensor]:
    """The gradient of the mean cross-entropy with respect to every kernel, float64 on the CPU.

    Gradients that the parameters hold stay as they are.

    Args:
        network: whose model is asked.
        examples: at least one batch.
        temperature: what logits are divided by.

    Raises:
        ValueError: the model's logits are not finite.
    """
    kernels = prunable(network.model)
    sums = {name: torch.zeros_like(kernel, dtype=torch.float64) for name, kernel in kernels.items()}
    count = 0
    for images, labels in examples:
        loss = summed_loss(network, images, labels, temperature)
        gradients = torch.autograd.grad(loss, list(kernels.values()))
        for total, gradient in zip(sums.values(), gradients, strict=True):
            total += gradient
        count += len(labels)
    return {name: (total / count).cpu() for name, total in sums.items()}


def summed_loss(network: Candidate, images: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """The cross-entropy of the logits over the temperature, summed over a batch, with a graph.

    Raises:
        ValueError: the model's logits are not finite.
    """
    logits = network.model(images)
    require_answers(logits, labels)
    return F.cross_entropy(logits / temperature, labels, reduction="sum")
