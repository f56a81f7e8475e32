"""The balls that perturbed images stay in: random points, ascent steps, membership."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, Self

import torch

Norm = Literal["linf", "l2"]

TOLERANCE = 1e-6
"""How far outside its ball float32 rounding may leave an image: in input units, or as a share of a longer radius."""


class Ball(ABC):
    """All images within a radius of given images, one ball an example, cut to [0, 1]."""

    @abstractmethod
    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """A random point of every ball, (N, C, H, W)."""

    @abstractmethod
    def step_(self, images: torch.Tensor, gradient: torch.Tensor, size: float) -> None:
        """Moves `images` by `size` in the direction of steepest ascent and back into the ball, in place.

        An example whose gradient is zero stays where it is.
        """

    @abstractmethod
    def contains(self, images: torch.Tensor) -> torch.Tensor:
        """Whether each image lies in its ball and in [0, 1], up to rounding: (N,) bool."""

    @abstractmethod
    def at(self, kept: torch.Tensor) -> Self:
        """The balls of the examples at these indices."""


class LinfBall(Ball):
    """Every pixel may change by up to the radius."""

    def __init__(self, centre: torch.Tensor, epsilon: float) -> None:
        self.centre = centre
        self.epsilon = epsilon
        self.lower = (centre - epsilon).clamp_(min=0)
        self.upper = (centre + epsilon).clamp_(max=1)

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """Uniform over the ball, then cut to [0, 1]."""
        noise = torch.empty_like(self.centre).uniform_(-self.epsilon, self.epsilon, generator=generator)
        return noise.add_(self.centre).clamp_(self.lower, self.upper)

    def step_(self, images: torch.Tensor, gradient: torch.Tensor, size: float) -> None:
        """Moves each pixel by `size`, up or down."""
        with torch.no_grad():
            images.add_(gradient.sign(), alpha=size).clamp_(self.lower, self.upper)

    def contains(self, images: torch.Tensor) -> torch.Tensor:
        """Whether no pixel has left its interval."""
        inside = (images >= self.lower - TOLERANCE) & (images <= self.upper + TOLERANCE)
        return inside.flatten(1).all(dim=1) & _in_range(images)

    def at(self, kept: torch.Tensor) -> LinfBall:
        """The balls of the examples at these indices."""
        return LinfBall(self.centre[kept], self.epsilon)


class L2Ball(Ball):
    """The change as a vector has at most the radius as its Euclidean length."""

    def __init__(self, centre: torch.Tensor, epsilon: float) -> None:
        self.centre = centre
        self.epsilon = epsilon

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """Uniform over the ball, then cut to [0, 1]."""
        direction = _unit(torch.empty_like(self.centre).normal_(generator=generator))
        radii = self.centre.new_empty(len(self.centre), 1, 1, 1).uniform_(generator=generator)
        radii = self.epsilon * radii ** (1 / self.centre[0].numel())
        return (self.centre + radii * direction).clamp_(0, 1)

    def step_(self, images: torch.Tensor, gradient: torch.Tensor, size: float) -> None:
        """Moves along the gradient by the Euclidean length `size`."""
        with torch.no_grad():
            change = images.add_(_unit(gradient), alpha=size).sub_(self.centre)
            change.mul_((self.epsilon / _length(change).clamp_min(1e-30)).clamp_(max=1))
            images.add_(self.centre).clamp_(0, 1)  # cutting to [0, 1] only shortens the change

    def contains(self, images: torch.Tensor) -> torch.Tensor:
        """Whether the change is no longer than the radius."""
        longest = self.epsilon + TOLERANCE * max(self.epsilon, 1)
        return (_length(images - self.centre).flatten() <= longest) & _in_range(images)

    def at(self, kept: torch.Tensor) -> L2Ball:
        """The balls of the examples at these indices."""
        return L2Ball(self.centre[kept], self.epsilon)


def ball(norm: Norm, images: torch.Tensor, epsilon: float) -> Ball:
    """The balls of radius `epsilon` around images (N, C, H, W) in [0, 1]."""
    return LinfBall(images, epsilon) if norm == "linf" else L2Ball(images, epsilon)


def _in_range(images: torch.Tensor) -> torch.Tensor:
    return ((images >= 0) & (images <= 1)).flatten(1).all(dim=1)


def _length(vectors: torch.Tensor) -> torch.Tensor:
    lengths: torch.Tensor = torch.linalg.vector_norm(vectors.flatten(1), dim=1)
    return lengths.view(-1, 1, 1, 1)


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors of length one; zero stays zero. Scaled by the largest entry first, so that no square underflows."""
    largest = vectors.flatten(1).abs().amax(dim=1).view(-1, 1, 1, 1)
    scaled = vectors / largest.clamp_min(torch.finfo(vectors.dtype).tiny)
    return scaled / _length(scaled).clamp_min(0.5)  # the length is zero or at least one
