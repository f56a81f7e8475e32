"""Random numbers that belong to an example, whoever shares its batch, shard or machine."""

from __future__ import annotations

import math

import torch

from tasks.seeds import seed_of

_GOLDEN = -0x61C8864680B583EB  # 2**64 divided by the golden ratio, as a signed 64-bit number
_FIRST = -0x40A7B892E31B1A47
_SECOND = -0x6B2FB644ECCEEE15


class Draws:
    """Random numbers for the examples of a batch, a pure function of seed, purpose, example and place.

    There is no position in a stream: what one example draws does not depend on which others are attacked with it or
    have fallen before, and the same numbers come out on every device. Counters are mixed as in SplitMix64 (Steele et
    al. 2014, figure 17).

    Args:
        seed: of all draws.
        examples: (N,) int64, a number for each example that is its own, such as its index in the split.
    """

    def __init__(self, seed: int, examples: torch.Tensor) -> None:
        self._seed = seed
        self._examples = examples
        self._marks = _mixed(examples * _GOLDEN)

    def __len__(self) -> int:
        return len(self._examples)

    def at(self, kept: torch.Tensor) -> Draws:
        """The draws of the examples at these indices."""
        return Draws(self._seed, self._examples[kept])

    def under(self, *purpose: int | str) -> Draws:
        """Other draws for the same examples."""
        return Draws(seed_of(self._seed, *purpose), self._examples)

    def uniform(self, shape: tuple[int, ...], *purpose: int | str) -> torch.Tensor:
        """(N, *shape) float32, uniform in [0, 1): multiples of 2**-24."""
        return self._bits(math.prod(shape), purpose).view(-1, *shape).to(torch.float32).mul_(2.0**-24)

    def normal(self, shape: tuple[int, ...], *purpose: int | str) -> torch.Tensor:
        """(N, *shape) float32, standard normal (Box & Muller 1958)."""
        size = math.prod(shape)
        half = (size + 1) // 2
        # In float64, so that rounding hides in which lanes of the processor a logarithm was taken.
        radius = (self.uniform((half,), *purpose, "radius").double() + 2.0**-25).log_().mul_(-2).sqrt_()
        angle = self.uniform((half,), *purpose, "angle").double() * (2 * math.pi)
        both = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1).float()
        return both[:, :size].reshape(-1, *shape)

    def signs(self, shape: tuple[int, ...], *purpose: int | str) -> torch.Tensor:
        """(N, *shape) float32, 1 or -1 with equal chances."""
        return (self._bits(math.prod(shape), purpose) & 1).view(-1, *shape).to(torch.float32).mul_(2).sub_(1)

    def integers(self, below: int | torch.Tensor, shape: tuple[int, ...], *purpose: int | str) -> torch.Tensor:
        """(N, *shape) int64 in [0, `below`); a tensor of bounds must broadcast to that shape and be below 2**24."""
        # Multiplying and shifting has no division and a bias below 2**-24 * `below`.
        return (self._bits(math.prod(shape), purpose).view(-1, *shape) * below) >> 24

    def _bits(self, count: int, purpose: tuple[int | str, ...]) -> torch.Tensor:
        """(N, count) int64, 24 random bits each."""
        place = torch.arange(1, count + 1, device=self._marks.device) * _GOLDEN
        start = self._marks + seed_of(self._seed, *purpose)
        return _shifted(_mixed(start.unsqueeze(1) + place), 40)


def _mixed(numbers: torch.Tensor) -> torch.Tensor:
    numbers = (numbers ^ _shifted(numbers, 30)) * _FIRST
    numbers = (numbers ^ _shifted(numbers, 27)) * _SECOND
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: torch.Tensor, places: int) -> torch.Tensor:
    """Shifts right and fills with zeros: torch's own shift keeps the sign."""
    return (numbers >> places) & ((1 << (64 - places)) - 1)
