"""GraSP: weights that the flow of gradients can do without go before training."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from tasks.data import Examples
from tasks.data.splits import class_by_class
from tasks.models.prunable import prunable
from tasks.pruning import Saliency
from tasks.pruning.candidate import Candidate
from tasks.pruning.gradients import batches, fresh_seed, mean_gradient, summed_loss


class GraSP(Saliency):
    """GraSP, gradient signal preservation at initialisation (Wang et al. 2020, Alg. 1 and equation 8).

    With `g` the gradient of the mean cross-entropy over examples balanced by class and `H` its Hessian, both over the
    prunable kernels, taking weight w away changes |g|² by -2 w (H g) to first order. Published code removes the largest
    -w (H g), weights without which gradients flow better; the score here is therefore w (H g). Dividing by the sum of
    absolute scores, as the code does, changes no rank. The network is in evaluation mode, see SNIP. Meant for initial
    weights, so for a training that stopped at step 0.
    """

    kind: Literal["grasp"] = "grasp"
    sees: ClassVar = "data"
    draws: ClassVar = True

    per_class: int = Field(default=10, ge=1)
    """Training images of each class."""
    temperature: float = Field(default=200, gt=0)
    """What logits are divided by: a high one makes the loss see little of how sure an untrained network is."""

    def check(self, examples: Examples) -> None:
        """Counts the examples of each class."""
        self._balanced(examples, seed=0)

    def score(self, network: Candidate) -> dict[str, torch.Tensor]:
        """The product w (H g) for every weight, signed.

        Raises:
            ValueError: a class has fewer training examples.
        """
        rows = self._balanced(network.examples, fresh_seed(network))
        gradients = mean_gradient(network, batches(network, rows), self.temperature)
        kernels = prunable(network.model)
        products = {name: torch.zeros_like(kernel, dtype=torch.float64) for name, kernel in kernels.items()}
        directions = {name: gradients[name].to(kernel) for name, kernel in kernels.items()}
        for images, labels in batches(network, rows):
            loss = summed_loss(network, images, labels, self.temperature)
            own = torch.autograd.grad(loss, list(kernels.values()), create_graph=True)
            along = torch.stack([(a * b).sum() for a, b in zip(own, directions.values(), strict=True)]).sum()
            for total, product in zip(
                products.values(), torch.autograd.grad(along, list(kernels.values())), strict=True
            ):
                total += product
        return {name: network.weights[name] * product.cpu() / len(rows) for name, product in products.items()}

    def sample_steps(self, examples: Examples) -> int:
        """Three passes: one for the gradient, and two through each other for its product with the Hessian."""
        return 3 * self.per_class * len(np.unique(examples.labels.numpy()))

    def _balanced(self, examples: Examples, seed: int) -> torch.Tensor:
        """Places of the examples, `per_class` of each class."""
        labels = examples.labels.numpy()
        classes, first, sizes = np.unique(np.sort(labels), return_index=True, return_counts=True)
        for label, size in zip(classes, sizes, strict=True):
            if size < self.per_class:
                raise ValueError(
                    f"saliency: per_class is {self.per_class}, but class {label} has {size} examples in the training "
                    "split"
                )
        order = class_by_class(labels, seed, "saliency")
        return torch.from_numpy(np.concatenate([order[start : start + self.per_class] for start in first]))
