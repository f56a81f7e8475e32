"""GAP: weights that help attacks go after training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from tasks.attacks.ascent import ascend, cross_entropy_gradient
from tasks.attacks.ball import ball, require_radius
from tasks.attacks.draws import Draws
from tasks.data import Examples
from tasks.measuring.predictions import BLOCK
from tasks.pruning import Saliency
from tasks.pruning.candidate import Candidate
from tasks.pruning.gradients import Batch, batches, drawn, fresh_seed, mean_gradient, require_examples


class GAP(Saliency):
    """GAP, greedy adversarial pruning of a trained network (Weiss, Alves & Kundu 2022, arXiv 2206.07406).

    With `g` the gradient of the mean cross-entropy on adversarial training images with respect to a kernel, the weights
    that go first have

    - `global`: the largest g, with its sign;
    - `global-times-parameter`: the largest w g, with its sign: to first order the loss falls most without them;
    - `layer`: the largest |g|, each layer ranked by itself.

    The attack moves in input space, from a random start and up the loss of the true labels, with the network in
    evaluation mode; `g` is taken at its last images alone, for kernels and not for biases. Published code differs: it
    attacks the predicted labels, adds up the gradients of all iterations of the attack, in training mode, and prunes
    biases too. Weights of gradient zero, such as those of a dead unit, rank in random order between the signs, drawn
    from the seed of the pruning.
    """

    kind: Literal["gap"] = "gap"
    sees: ClassVar = "data"
    draws: ClassVar = True

    variant: Literal["global", "global-times-parameter", "layer"] = "global"
    """What ranks the weights. Scores of `layer` are for a scope that ranks every layer by itself."""
    epsilon: float = Field(gt=0)
    """Radius of the attack, in input units; published: 2/255 on CIFAR-10."""
    norm: Literal["linf", "l2"] = "linf"
    """Norm of the ball."""
    steps: int = Field(default=10, ge=1)
    """Steps of the attack."""
    relative_step: float = Field(default=0.1275, gt=0)
    """Length of a step as a share of epsilon; published: 0.001 of 2/255."""
    examples: int | None = Field(default=None, ge=1)
    """How many training images are attacked, drawn evenly over the classes; all unless given."""

    @model_validator(mode="after")
    def _radius_fits(self) -> Self:
        require_radius(self.norm, self.epsilon)
        return self

    @property
    def within_layers(self) -> bool:
        """Whether it ranks weights within their layer alone."""
        return self.variant == "layer"

    def check(self, examples: Examples) -> None:
        """Counts the examples."""
        require_examples(self.examples, examples)

    def score(self, network: Candidate) -> dict[str, torch.Tensor]:
        """The negative of what the variant removes the largest of.

        Raises:
            ValueError: there are fewer training examples.
        """
        gradients = mean_gradient(network, self._attacked(network, drawn(network, self.examples)))
        if self.variant == "global":
            scores = {name: -gradient for name, gradient in gradients.items()}
        elif self.variant == "global-times-parameter":
            scores = {name: -network.weights[name] * gradient for name, gradient in gradients.items()}
        else:
            scores = {name: -gradient.abs() for name, gradient in gradients.items()}
        return _untied(scores, network)

    def sample_steps(self, examples: Examples) -> int:
        """A pass for each step of the attack, and one for the kernels."""
        return (self.steps + 1) * (self.examples or len(examples))

    def _attacked(self, network: Candidate, rows: torch.Tensor) -> Iterator[Batch]:
        """Adversarial images of these examples."""
        seed, step = fresh_seed(network), self.relative_step * self.epsilon
        for block, (images, labels) in zip(torch.split(rows, BLOCK), batches(network, rows), strict=True):
            within = ball(self.norm, images, self.epsilon)
            start = within.random(Draws(seed, block.to(images.device)))
            yield ascend(cross_entropy_gradient(network.model, labels), start, within, step, self.steps), labels


def _untied(scores: dict[str, torch.Tensor], network: Candidate) -> dict[str, torch.Tensor]:
    """The scores with random ones for zeros, nearer to zero than any other score."""
    others = torch.cat([score[score != 0].abs() for score in scores.values()])
    nearest = float(others.min()) if len(others) else 1.0
    for name in network.mask:
        chance = torch.rand(scores[name].shape, dtype=torch.float64, generator=network.generator) - 0.5
        scores[name] = torch.where(scores[name] == 0, nearest * chance, scores[name])
    return scores
