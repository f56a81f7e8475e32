"""Fast adversarial training that keeps the loss linear within the ball."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from tasks.attacks.ascent import cross_entropy_gradient, evaluating
from tasks.attacks.ball import Norm, ball, unit
from tasks.moment import Moment
from tasks.objectives.adversarial import Adversarial, Attacked, per_image, random_change


class GradAlign(Adversarial):
    """Gradient alignment: FGSM training plus a term for gradients that turn (Andriushchenko & Flammarion 2020).

    The loss is `CE(f(x'), y) + weight * (1 - mean cos(g(x), g(x + eta)))`: `x'` is one step of the radius from the
    image, `g` the gradient of the cross-entropy with respect to the image, and `eta` is even in the linf ball, not cut
    to [0, 1]. As in the authors' code, `g(x)` is the constant that the step was made of, weights are reached through
    `g(x + eta)` alone, and examples of which either gradient is zero do not count. Unlike there, both are those of the
    network in evaluation mode: with batch statistics they would depend on the other images.

    The term is differentiated through a gradient: layers must allow that, and a compiled network does not.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf",)

    kind: Literal["grad-align"] = "grad-align"
    weight: float = Field(default=0.2, ge=0)
    """Weight of the term, which larger radii need more of: for CIFAR-10 the authors take `0.02 * 10 ** (255 * epsilon /
    8)`, which is 0.063 at 4/255, 0.2 at 8/255 and 2 at 16/255; for SVHN 2.5 at 8/255. 0 leaves FGSM training."""

    @property
    def second_order(self) -> bool:
        """It is, by its term."""
        return self.weight > 0

    def passes(self) -> int:
        """One for the step, one for the loss, and two for the term: its gradient goes back a second time."""
        return 4 if self.weight else 2

    def outer_passes(self) -> int:
        """By itself it takes the gradient at the images too, which `loss` takes once for step and term."""
        return 4 if self.weight else 1

    def loss(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, moment: Moment) -> torch.Tensor:
        """What `outer` makes of the images that `perturb` found, with one gradient for both."""
        gradient = _gradient(model, images, labels)
        perturbed = _step(images, gradient, self.radii(images, moment))
        found = self._outer(model, images, perturbed, labels, gradient, moment)
        self.learn(found.logits, labels, moment)
        return found.loss

    def perturb(
        self,
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        epsilon: float | torch.Tensor,
        moment: Moment,
    ) -> torch.Tensor:
        """One step of the radius from the images; draws nothing."""
        return _step(images, _gradient(model, images, labels), epsilon)

    def outer(
        self,
        model: nn.Module,
        images: torch.Tensor,
        perturbed: torch.Tensor,
        labels: torch.Tensor,
        moment: Moment,
    ) -> Attacked:
        """The mean cross-entropy on perturbed images, and the term in the ball that they have reached the edge of."""
        return self._outer(model, images, perturbed, labels, _gradient(model, images, labels), moment)

    def _outer(
        self,
        model: nn.Module,
        images: torch.Tensor,
        perturbed: torch.Tensor,
        labels: torch.Tensor,
        gradient: torch.Tensor,
        moment: Moment,
    ) -> Attacked:
        logits = model(perturbed)
        loss = F.cross_entropy(logits, labels)
        if not self.weight:
            return Attacked(loss, logits)
        radii = (perturbed - images).flatten(1).abs().amax(dim=1)
        nearby = images + random_change(images, radii, moment.generator)
        return Attacked(loss + self.weight * _misalignment(gradient, _gradient(model, nearby, labels, True)), logits)


def _gradient(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, graph: bool = False) -> torch.Tensor:
    """The gradient of the cross-entropy at these images, (N, C, H, W), as a constant or with a graph."""
    leaf = images.detach().requires_grad_()
    with evaluating(model):
        if not graph:
            return cross_entropy_gradient(model, labels)(leaf)
        loss = F.cross_entropy(model(leaf), labels, reduction="sum")
        return torch.autograd.grad(loss, leaf, create_graph=True)[0]


def _step(images: torch.Tensor, gradient: torch.Tensor, epsilon: float | torch.Tensor) -> torch.Tensor:
    perturbed = images.clone()
    ball("linf", images, epsilon).step_(perturbed, gradient, per_image(epsilon))
    return perturbed


def _misalignment(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """One minus the cosine between gradients (N, C, H, W), the mean of those that both have a direction; else 0."""
    first, second = first.float(), second.float()
    both = (first != 0).flatten(1).any(dim=1) & (second != 0).flatten(1).any(dim=1)
    counted = both.view(-1, 1, 1, 1)
    # Two equal constants instead of a vector without direction: its cosine is 1, and nothing is differentiated there.
    first, second = torch.where(counted, first, 1), torch.where(counted, second, 1)
    cosine = (unit(first) * unit(second)).flatten(1).sum(dim=1)
    return torch.where(both, 1 - cosine, 0).sum() / both.sum().clamp(min=1)
