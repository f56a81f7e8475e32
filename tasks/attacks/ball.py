"""The balls that perturbed images stay in: random points, ascent steps, projection, membership."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NoReturn, Self

import torch

from tasks.attacks.draws import Draws

Norm = Literal["linf", "l2", "l1", "l0"]

TOLERANCE = 1e-6
"""How far outside its ball float32 rounding may leave an image: in input units, or as a share of a longer radius."""


class Ball(ABC):
    """All images within a radius of given images, one ball an example, cut to [0, 1].

    Args:
        centre: (N, C, H, W) in [0, 1].
        epsilon: the radius of all, or (N,) those of each.
    """

    def __init__(self, centre: torch.Tensor, epsilon: float | torch.Tensor) -> None:
        self.centre = centre
        self.epsilon = epsilon.view(-1, 1, 1, 1) if isinstance(epsilon, torch.Tensor) else epsilon

    @abstractmethod
    def random(self, draws: Draws, *purpose: int | str) -> torch.Tensor:
        """A random point of every ball, (N, C, H, W)."""

    def surface(self, draws: Draws, *purpose: int | str) -> torch.Tensor:
        """A random point of every ball's surface, then cut to [0, 1]: (N, C, H, W).

        A ball whose random points lie there, or have no inside to speak of, keeps this.
        """
        return self.random(draws, *purpose)

    @abstractmethod
    def step_(self, images: torch.Tensor, gradient: torch.Tensor, size: float | torch.Tensor) -> None:
        """Moves `images` by `size`, a number or (N, 1, 1, 1), in the direction of steepest ascent and back into the
        ball, in place.

        An example whose gradient is zero stays where it is.
        """

    @abstractmethod
    def project_(self, images: torch.Tensor) -> torch.Tensor:
        """Moves images outside their ball or [0, 1] onto it, in place, and returns them."""

    @abstractmethod
    def distances(self, images: torch.Tensor) -> torch.Tensor:
        """How far each image is from its centre in the ball's norm: (N,)."""

    def contains(self, images: torch.Tensor) -> torch.Tensor:
        """Whether each image lies in its ball and in [0, 1], up to rounding: (N,) bool."""
        radii = torch.as_tensor(self.epsilon, device=images.device).flatten()
        in_range = ((images >= 0) & (images <= 1)).flatten(1).all(dim=1)
        return (self.distances(images) <= radii + TOLERANCE * radii.clamp(min=1)) & in_range

    def at(self, kept: torch.Tensor) -> Self:
        """The balls of the examples at these indices."""
        epsilon = self.epsilon[kept].flatten() if isinstance(self.epsilon, torch.Tensor) else self.epsilon
        return type(self)(self.centre[kept], epsilon)


class LinfBall(Ball):
    """Every pixel may change by up to the radius."""

    def __init__(self, centre: torch.Tensor, epsilon: float | torch.Tensor) -> None:
        super().__init__(centre, epsilon)
        self.lower = (centre - self.epsilon).clamp_(min=0)
        self.upper = (centre + self.epsilon).clamp_(max=1)

    def random(self, draws: Draws, *purpose: int | str) -> torch.Tensor:
        """Uniform over the ball, then cut to [0, 1]."""
        noise = draws.uniform(tuple(self.centre.shape[1:]), *purpose).mul_(2).sub_(1)
        return noise.mul_(self.epsilon).add_(self.centre).clamp_(self.lower, self.upper)

    def surface(self, draws: Draws, *purpose: int | str) -> torch.Tensor:
        """Uniform noise, stretched until its largest entry is the radius."""
        noise = draws.uniform(tuple(self.centre.shape[1:]), *purpose).mul_(2).sub_(1)
        largest = noise.flatten(1).abs().amax(dim=1).view(-1, 1, 1, 1)
        return (noise / largest).mul_(self.epsilon).add_(self.centre).clamp_(self.lower, self.upper)

    def step_(self, images: torch.Tensor, gradient: torch.Tensor, size: float | torch.Tensor) -> None:
        """Moves each pixel by `size`, up or down."""
        with torch.no_grad():
            _add_(images, gradient.sign(), size).clamp_(self.lower, self.upper)

    def project_(self, images: torch.Tensor) -> torch.Tensor:
        """Cuts each pixel to its interval."""
        return images.clamp_(self.lower, self.upper)

    def distances(self, images: torch.Tensor) -> torch.Tensor:
        """The largest change of a pixel."""
        return (images - self.centre).flatten(1).abs().amax(dim=1)


class L2Ball(Ball):
    """The change as a vector has at most the radius as its Euclidean length."""

    def random(self, draws: Draws, *purpose: int | str) -> torch.Tensor:
        """Uniform over the ball, then cut to [0, 1]."""
        direction = unit(draws.normal(tuple(self.centre.shape[1:]), *purpose))
        radii = draws.uniform((1, 1, 1), *purpose, "radius") ** (1 / self.centre[0].numel())
        return (self.centre + self.epsilon * radii * direction).clamp_(0, 1)

    def surface(self, draws: Draws, *purpose: int | str) -> torch.Tensor:
        """Uniform over the sphere."""
        direction = unit(draws.normal(tuple(self.centre.shape[1:]), *purpose))
        return (self.centre + self.epsilon * direction).clamp_(0, 1)

    def step_(self, images: torch.Tensor, gradient: torch.Tensor, size: float | torch.Tensor) -> None:
        """Moves along the gradient by the Euclidean length `size`."""
        with torch.no_grad():
            self.project_(_add_(images, unit(gradient), size))

    def project_(self, images: torch.Tensor) -> torch.Tensor:
        """Shortens changes that are longer than the radius."""
        change = images.sub_(self.centre)
        change.mul_((self.epsilon / lengths(change).clamp_min(1e-30)).clamp_(max=1))
        return images.add_(self.centre).clamp_(0, 1)  # cutting to [0, 1] only shortens the change

    def distances(self, images: torch.Tensor) -> torch.Tensor:
        """The Euclidean length of the change."""
        return lengths(images - self.centre).flatten()


class L1Ball(Ball):
    """The sum of the absolute changes is at most the radius."""

    def random(self, draws: Draws, *purpose: int | str) -> torch.Tensor:
        """Standard normal noise, moved to the nearest point of the ball: a sparse point of its surface."""
        return self.project_(self.centre + draws.normal(tuple(self.centre.shape[1:]), *purpose))

    def step_(self, images: torch.Tensor, gradient: torch.Tensor, size: float | torch.Tensor) -> None:
        """Moves the one pixel of largest gradient by `size`: no direction is steeper in this norm."""
        self.step_few_(images, gradient, size, torch.ones(len(images), dtype=torch.int64, device=images.device))

    def step_few_(
        self, images: torch.Tensor, gradient: torch.Tensor, size: float | torch.Tensor, count: torch.Tensor
    ) -> None:
        """Moves the `count` (N,) pixels of largest gradient equally, by `size` in all, and into the ball, in place.

        Pixels whose gradient ties with the last of them move too (Croce & Hein 2021, section 3.2).
        """
        with torch.no_grad():
            size_of = gradient.flatten(1).abs()
            last = size_of.sort(dim=1).values.gather(1, (size_of.shape[1] - count).unsqueeze(1))
            signs = gradient.sign().mul_((size_of >= last).view_as(gradient))
            moved = signs.flatten(1).abs().sum(dim=1).clamp_(min=1).view(-1, 1, 1, 1)
            self.project_(_add_(images, signs.div_(moved), size))

    def project_(self, images: torch.Tensor) -> torch.Tensor:
        """Moves images to the nearest point of the part of the ball that lies in [0, 1], in place, and returns them.

        Every change shrinks by one amount, then stops at 0 and at the room that its pixel has (Croce & Hein 2021,
        proposition 2.1). The smallest amount with which the changes fit the radius is found by bisection: unlike
        sorting the pixels, that adds no long sums, and its cost is a pass over the images a bit.
        """
        change = (images - self.centre).flatten(1)
        reach = change.abs()
        centre = self.centre.flatten(1)
        room = torch.where(change > 0, 1 - centre, centre)
        radii = torch.as_tensor(self.epsilon, device=images.device).view(-1, 1)

        def shrunk(amount: torch.Tensor) -> torch.Tensor:
            return torch.minimum((reach - amount).clamp_(min=0), room)

        none = torch.zeros_like(reach[:, :1])
        too_far = shrunk(none).sum(dim=1, keepdim=True) > radii
        low, high = none, torch.where(too_far, reach.amax(dim=1, keepdim=True), none)
        for _ in range(26):  # more bits than a float32 has
            middle = (low + high) / 2
            fits = shrunk(middle).sum(dim=1, keepdim=True) <= radii
            low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
        fitting = shrunk(high).mul_(change.sign_()).add_(centre).clamp_(0, 1)
        return images.copy_(fitting.view_as(images))

    def distances(self, images: torch.Tensor) -> torch.Tensor:
        """The sum of the absolute changes."""
        return (images - self.centre).flatten(1).abs().sum(dim=1)


class L0Ball(Ball):
    """At most `floor(radius)` values may change, each by any amount.

    A value counts as changed when it differs at all, however little: there is no tolerance that many tiny changes
    could hide under.
    """

    def random(self, draws: Draws, *purpose: int | str) -> NoReturn:
        """Is not offered: no attack here starts from a random point of this ball."""
        raise NotImplementedError("the L0 ball has no random point: attack from the image itself")

    def step_(self, images: torch.Tensor, gradient: torch.Tensor, size: float | torch.Tensor) -> NoReturn:
        """Is not offered: steepest ascent in L0 changes whole values, and there is no length of a step."""
        raise NotImplementedError("the L0 ball has no step of steepest ascent: move the images and project them")

    def project_(self, images: torch.Tensor) -> torch.Tensor:
        """Keeps the `floor(radius)` largest changes, of equal ones those that come first, and cuts them to [0, 1]."""
        change = (images - self.centre).flatten(1).abs()
        order = change.argsort(dim=1, descending=True, stable=True)
        allowed = torch.as_tensor(self.epsilon, device=images.device).floor().view(-1, 1)
        place = torch.arange(change.shape[1], device=images.device)
        kept = torch.zeros_like(change, dtype=torch.bool).scatter_(1, order, place < allowed.expand(len(images), -1))
        return images.copy_(torch.where(kept.view_as(images), images, self.centre)).clamp_(0, 1)

    def distances(self, images: torch.Tensor) -> torch.Tensor:
        """The number of values that differ, as float32."""
        return (images != self.centre).flatten(1).sum(dim=1).float()


def ball(norm: Norm, images: torch.Tensor, epsilon: float | torch.Tensor) -> Ball:
    """The balls of radius `epsilon`, one number or (N,), around images (N, C, H, W) in [0, 1]."""
    return _BALLS[norm](images, epsilon)


def require_radius(norm: Norm, epsilon: float) -> None:
    """Refuses a radius that no image can need.

    Raises:
        ValueError: it is above 1 in norm linf.
    """
    if norm == "linf" and epsilon > 1:
        raise ValueError(f"epsilon is {epsilon}, but images lie in [0, 1]: at most 1 in norm linf")


def lengths(vectors: torch.Tensor) -> torch.Tensor:
    """Euclidean lengths, (N, 1, 1, 1)."""
    found: torch.Tensor = torch.linalg.vector_norm(vectors.flatten(1), dim=1)
    return found.view(-1, 1, 1, 1)


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors of length one; zero stays zero. Scaled by the largest entry first, so that no square underflows."""
    largest = vectors.flatten(1).abs().amax(dim=1).view(-1, 1, 1, 1)
    scaled = vectors / largest.clamp_min(torch.finfo(vectors.dtype).tiny)
    return scaled / lengths(scaled).clamp_min(0.5)  # the length is zero or at least one


def _add_(images: torch.Tensor, direction: torch.Tensor, size: float | torch.Tensor) -> torch.Tensor:
    if isinstance(size, torch.Tensor):
        return images.add_(direction.mul_(size))
    return images.add_(direction, alpha=size)


_BALLS: dict[Norm, type[Ball]] = {"linf": LinfBall, "l2": L2Ball, "l1": L1Ball, "l0": L0Ball}
