"""The attack that follows the curvature of the loss, explored by a few Hessian-vector products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.ball import Norm, ball, lengths, unit
from tasks.attacks.draws import Draws
from tasks.attacks.losses import cross_entropy
from tasks.attacks.strongest import Strongest

Product = Callable[[torch.Tensor], torch.Tensor]
"""From one vector an example to the Hessian of its loss times that vector, both in the images' shape."""

_BREAKDOWN = 1e-5  # of a product is left by float32 rounding once the subspace is exhausted
_HALVINGS = 60


class Krylov(Attack):
    """Second-order attack: damped Newton steps in a Krylov subspace of the cross-entropy (after Qian et al. 2022).

    The quadratic model of the loss is climbed within a Euclidean ball of the step's length, in the subspace spanned by
    g, Hg, H^2 g, ...: the change is (lambda - H)^-1 g, where the damping lambda is chosen for each example so that the
    change fills the ball and the model is concave. As a Hessian is symmetric, the subspace is built by Lanczos with
    full orthogonalisation (Gould et al. 1999) and not by GMRES. In L-inf the step goes by the signs of that
    change.

    Needs a twice differentiable model to be worth its cost: networks of ReLUs are curved by their softmax alone.
    """

    kind: Literal["krylov"] = "krylov"
    steps: int = Field(default=1, ge=1)
    """Steps from the image itself; each costs one gradient and `dimension` Hessian-vector products."""
    relative_step: float = Field(default=1.0, gt=0)
    """Length of a step as a share of epsilon."""
    dimension: int = Field(default=3, ge=1)
    """Dimension of the subspace; 1 follows the gradient. On small MNIST networks 10 gained nothing over 3."""

    def search(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        """For each example the first iterate that fools the model, else the one of greatest loss; draws nothing."""
        best = Strongest(images)
        rows = best.standing()
        within = ball(self.norm, images, epsilon)
        current = images.clone()
        for _ in range(self.steps):
            current.requires_grad_()
            with torch.enable_grad():
                logits = model(current)
                losses = cross_entropy(logits, labels)
                gradient = torch.autograd.grad(losses.sum(), current, create_graph=True)[0]
            fooled = best.note(rows, current.detach(), losses.detach(), logits.argmax(dim=1) != labels)
            if fooled.all():
                return best.images
            size = self.relative_step * epsilon.view(-1, 1, 1, 1)
            change = climb_quadratic(
                _hessian_of(gradient, current), gradient.detach(), _euclidean(size, images, self.norm), self.dimension
            )
            current = current.detach()
            within.step_(current, change, size)
            if fooled.any():
                kept = (~fooled).nonzero().squeeze(1)
                current, labels, rows, within = current[kept], labels[kept], rows[kept], within.at(kept)
                epsilon = epsilon[kept]
        with torch.no_grad():
            logits = model(current)
        best.note(rows, current, cross_entropy(logits, labels), logits.argmax(dim=1) != labels)
        return best.images


def climb_quadratic(product: Product, gradient: torch.Tensor, radii: torch.Tensor, dimension: int) -> torch.Tensor:
    """The highest point of g.d + d.Hd/2 with |d| <= radius, in a Krylov subspace: (N, C, H, W).

    Args:
        product: the Hessian times a vector.
        gradient: (N, C, H, W).
        radii: (N, 1, 1, 1), Euclidean.
        dimension: of the subspace span(g, Hg, ..., H^(dimension - 1) g).
    """
    # A confident network's gradient may be so small that its square underflows: gradient and Hessian are scaled alike.
    scale = gradient.flatten(1).abs().amax(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny).view(-1, 1, 1, 1)
    gradient = gradient / scale
    basis, projected = _lanczos(lambda vectors: product(vectors) / scale, gradient, dimension)
    eigen: tuple[torch.Tensor, torch.Tensor] = torch.linalg.eigh(projected)
    values, vectors = eigen
    # The gradient is its own length times the first vector of the basis.
    heights = lengths(gradient).view(-1, 1).double() * vectors[:, 0, :]
    damping = _damping(values, heights, radii.view(-1, 1).double())
    weights = (vectors * _damped(values, heights, damping).unsqueeze(1)).sum(dim=2)
    change = (basis * weights.to(basis.dtype).unsqueeze(2)).sum(dim=1)
    return change.view_as(gradient)


def _lanczos(product: Product, gradient: torch.Tensor, dimension: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An orthonormal basis (N, m, D) that starts with the gradient, and the Hessian in it, (N, m, m) float64.

    Where the subspace ends early, the vectors that are missing are zero.
    """
    basis = unit(gradient).flatten(1).unsqueeze(1)
    diagonal, beside = [], []
    for _ in range(dimension):
        image = product(basis[:, -1].reshape(gradient.shape)).flatten(1)
        diagonal.append((image * basis[:, -1]).sum(dim=1))
        rest = image
        for _ in range(2):  # once is not enough in floating point
            along = (basis * rest.unsqueeze(1)).sum(dim=2, keepdim=True)
            rest = rest - (along * basis).sum(dim=1)
        left, whole = lengths(rest).view(-1, 1), lengths(image).view(-1, 1)
        rest = torch.where(left > _BREAKDOWN * whole, rest, 0)
        beside.append(lengths(rest).flatten())
        following = unit(rest.view_as(gradient)).flatten(1)
        basis = torch.cat([basis, following.unsqueeze(1)], dim=1)
    off = torch.stack(beside[:-1], dim=1).double() if dimension > 1 else basis.new_zeros(len(basis), 0).double()
    projected = torch.diag_embed(torch.stack(diagonal, dim=1).double())
    projected = projected + torch.diag_embed(off, offset=1) + torch.diag_embed(off, offset=-1)
    return basis[:, :-1], projected


def _damping(values: torch.Tensor, heights: torch.Tensor, radii: torch.Tensor) -> torch.Tensor:
    """The smallest lambda >= 0 above all eigenvalues for which the damped Newton step fits in the ball, (N, 1).

    Args:
        values: (N, m), eigenvalues in rising order.
        heights: (N, m), the gradient along the eigenvectors.
        radii: (N, 1).
    """
    low: torch.Tensor = values[:, -1:].clamp_min(0)
    high: torch.Tensor = low + torch.linalg.vector_norm(heights, dim=1, keepdim=True) / radii.clamp_min(1e-30)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        too_long = torch.linalg.vector_norm(_damped(values, heights, middle), dim=1, keepdim=True) > radii
        low, high = torch.where(too_long, middle, low), torch.where(too_long, high, middle)
    return high


def _damped(values: torch.Tensor, heights: torch.Tensor, damping: torch.Tensor) -> torch.Tensor:
    """The damped Newton step along the eigenvectors, (N, m)."""
    step: torch.Tensor = heights / (damping - values).clamp_min(torch.finfo(values.dtype).tiny)
    return step


def _hessian_of(gradient: torch.Tensor, images: torch.Tensor) -> Product:
    def product(vectors: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(gradient, images, vectors, retain_graph=True, materialize_grads=True)[0]

    return product


def _euclidean(sizes: torch.Tensor, images: torch.Tensor, norm: Norm) -> torch.Tensor:
    """The Euclidean length of steps that have these lengths in `norm`."""
    return sizes * math.sqrt(images[0].numel()) if norm == "linf" else sizes
