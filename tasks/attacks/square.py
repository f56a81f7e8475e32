"""The attack that needs no gradient: random search with square windows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.ball import Norm, ball, lengths
from tasks.attacks.draws import Draws
from tasks.attacks.losses import margin
from tasks.attacks.strongest import Strongest

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""The queries after which the share of changed pixels is halved, however many there are in all."""
_BLOCK = 50
"""Queries whose random numbers are drawn in one go: drawing costs by the call, hardly by the number."""


class Square(Attack):
    """Square attack: random search that changes one square window at a time (Andriushchenko et al. 2020, Alg. 1 to 3).

    It asks for logits alone, so that gradients which are hidden or wrong do not stop it. The L1 form is that of Croce &
    Hein 2021, section 4. Every example has windows and colours of its own, and they reach every border, as in the
    paper. One that falls is dropped at once, and a proposal that would change nothing is counted but not computed.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    gradients: ClassVar[bool] = False

    kind: Literal["square"] = "square"
    queries: int = Field(default=5000, ge=1)
    """Windows proposed from each start, at most; the start itself is one query more."""
    restarts: int = Field(default=1, ge=1)
    """Random starts in all."""
    share: float = Field(default=0.8, gt=0, le=1)
    """Share of the pixels that the first windows cover, p in the paper; halved after 10, 50, 200, 500, 1000, 2000, ...
    queries, whatever their number."""

    def search(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        """For each example the first attempt that fools the model, else the one of greatest margin."""
        best = Strongest(images)
        for restart in range(self.restarts):
            rows = best.standing()
            if not len(rows):
                break
            own = draws.at(rows).under("square", restart)
            start = _SEARCHES[self.norm].start(images[rows], epsilon[rows].view(-1, 1, 1, 1), own)
            with torch.no_grad():
                self._descend(model, labels[rows], start, own, rows, best)
        return best.images

    def side(self, query: int, height: int, width: int) -> int:
        """Side of the window at this query, the first proposal being query 0, in images of this size."""
        share = self.share / 2 ** bisect_left(_HALVINGS, query)
        side = round(math.sqrt(share * height * width))
        if self.norm != "linf":
            side = max(side, 3) | 1  # odd, so that the pattern in it has a middle
        return min(max(side, 1), height, width)

    def _descend(
        self,
        model: nn.Module,
        labels: torch.Tensor,
        found: _Search,
        draws: Draws,
        rows: torch.Tensor,
        best: Strongest,
    ) -> None:
        """One random search over the examples `rows`, noting in `best` what it finds."""
        height, width = found.current.shape[2:]
        reached = torch.full_like(labels, -torch.inf, dtype=found.current.dtype)
        for query in range(self.queries + 1):
            block, now = divmod(query, _BLOCK)
            if now == 0:
                sides = [self.side(later - 1, height, width) for later in range(query, query + _BLOCK)]
                choices = _Choices.drawn(draws, block, sides, found.current)
            asked = found.propose(sides[now], choices, now) if query else found.everyone()
            margins, fooled = _ask(model, found.trial, labels, reached, asked)
            improved = fooled | (margins > reached)
            reached = torch.where(improved, margins, reached)
            if query:
                found.accept(improved)
            if fooled.any():
                best.note(rows, found.current, reached, fooled)
                kept = (~fooled).nonzero().squeeze(1)
                if not len(kept):
                    return
                rows, labels, reached = rows[kept], labels[kept], reached[kept]
                found, draws, choices = found.at(kept), draws.at(kept), choices.at(kept)
        best.note(rows, found.current, reached, torch.zeros_like(labels, dtype=torch.bool))


def _ask(
    model: nn.Module, trial: torch.Tensor, labels: torch.Tensor, reached: torch.Tensor, asked: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Margins (n,) and which images fool the model (n,); those that are not `asked` did not and stay at `reached`."""
    if len(asked) == len(labels):
        logits = model(trial)
        return margin(logits, labels), logits.argmax(dim=1) != labels
    margins, fooled = reached.clone(), torch.zeros_like(labels, dtype=torch.bool)
    if len(asked):
        logits, own = model(trial[asked]), labels[asked]
        margins[asked], fooled[asked] = margin(logits, own), logits.argmax(dim=1) != own
    return margins, fooled


@dataclass(frozen=True)
class _Choices:
    """What chance decides in a block of queries."""

    corners: torch.Tensor
    """(queries, n, 2) int64: the upper left corners of two windows, as places in the plane of a channel."""
    colours: torch.Tensor
    """(queries, n, C) float32, 1 or -1."""
    turned: torch.Tensor
    """(queries, n) int64, 0 or 1: whether the pattern in the window is transposed."""

    @classmethod
    def drawn(cls, draws: Draws, block: int, sides: list[int], images: torch.Tensor) -> Self:
        """Those of this block, whose windows have these sides, for images like these (n, C, H, W)."""
        _, channels, height, width = images.shape
        room = torch.tensor([[height - side + 1, width - side + 1] * 2 for side in sides], device=images.device)
        places = draws.integers(room, (len(sides), 4), "corners", block).transpose(0, 1)
        return cls(
            corners=places[:, :, 0::2] * width + places[:, :, 1::2],
            colours=draws.signs((len(sides), channels), "colours", block).transpose(0, 1).contiguous(),
            turned=draws.integers(2, (len(sides),), "turned", block).T.contiguous(),
        )

    def at(self, kept: torch.Tensor) -> Self:
        """Those of the examples at these indices."""
        return type(self)(self.corners[:, kept], self.colours[:, kept], self.turned[:, kept])


class _Search(ABC):
    """Where the search stands for some examples, and what it tries next.

    Args:
        centre: (n, C, H, W), the images.
        epsilon: (n, 1, 1, 1), the radii.
        current: (n, C, H, W), the best attempts so far; overwritten.
    """

    def __init__(self, centre: torch.Tensor, epsilon: torch.Tensor, current: torch.Tensor) -> None:
        self.centre = centre
        self.epsilon = epsilon
        self.current = current
        self.trial = current
        """(n, C, H, W), what was proposed last."""

    @classmethod
    @abstractmethod
    def start(cls, centre: torch.Tensor, epsilon: torch.Tensor, draws: Draws) -> Self:
        """A random start."""

    @abstractmethod
    def propose(self, side: int, choices: _Choices, query: int) -> torch.Tensor:
        """Sets `trial` and returns the indices of the examples for which it is something new."""

    @abstractmethod
    def accept(self, improved: torch.Tensor) -> None:
        """Goes on from the trials of these examples (n,) bool, and from what was before for the others."""

    def everyone(self) -> torch.Tensor:
        """The indices of all examples, (n,)."""
        return torch.arange(len(self.centre), device=self.centre.device)

    def at(self, kept: torch.Tensor) -> Self:
        """The search over the examples at these indices."""
        return type(self)(self.centre[kept], self.epsilon[kept], self.current[kept])


class _LinfSearch(_Search):
    """Every pixel of the window becomes the lowest or the highest of its interval, by channel (Alg. 2).

    The trial is written into the current attempt, and out of it again if it is refused: windows are small.
    """

    _places: torch.Tensor
    _before: torch.Tensor
    _after: torch.Tensor

    @classmethod
    def start(cls, centre: torch.Tensor, epsilon: torch.Tensor, draws: Draws) -> Self:
        """Vertical stripes, one pixel wide."""
        stripes = draws.signs((centre.shape[1], 1, centre.shape[3]), "stripes")
        return cls(centre, epsilon, (centre + epsilon * stripes).clamp_(0, 1))

    def propose(self, side: int, choices: _Choices, query: int) -> torch.Tensor:
        """Colours one window of each example; new where that changes a pixel."""
        n, *shape = self.centre.shape
        self._places = choices.corners[query, :, :1] + _window(side, *shape, self.centre.device)
        self._before = self.current.view(n, -1).gather(1, self._places)
        change = choices.colours[query] * self.epsilon.view(-1, 1)
        pixels = self.centre.view(n, -1).gather(1, self._places).view(n, shape[0], -1)
        self._after = pixels.add_(change.unsqueeze(2)).clamp_(0, 1).view(n, -1)
        self.current.view(n, -1).scatter_(1, self._places, self._after)
        return (self._after != self._before).any(dim=1).nonzero().squeeze(1)

    def accept(self, improved: torch.Tensor) -> None:
        """Restores the windows of the others."""
        kept = torch.where(improved.unsqueeze(1), self._after, self._before)
        self.current.view(len(kept), -1).scatter_(1, self._places, kept)


class _PatternSearch(_Search):
    """A window gets a pattern of two opposite pyramids, and what a second window held as well (Alg. 3).

    The second window is emptied, so that there is something to spend in the first; the pattern is added to what the
    first held, channel by channel, at unit size each.
    """

    power: ClassVar[int]
    """Of the norm: 2 or 1."""

    @classmethod
    def start(cls, centre: torch.Tensor, epsilon: torch.Tensor, draws: Draws) -> Self:
        """A grid of windows, five along the shorter side, each with its own sign by channel."""
        n, channels, height, width = centre.shape
        side = max(min(height, width) // 5, 1)
        down, across = height // side, width // side
        turned = draws.integers(2, (down, across), "turned")
        colours = draws.signs((down, across, channels, 1, 1), "colours")
        tiles = _pattern(side, cls.power, centre.device)[turned].view(n, down, across, 1, side, side) * colours
        change = torch.zeros_like(centre)
        top, left = (height - down * side) // 2, (width - across * side) // 2
        change[:, :, top : top + down * side, left : left + across * side] = tiles.permute(0, 3, 1, 4, 2, 5).reshape(
            n, channels, down * side, across * side
        )
        return cls(centre, epsilon, cls.fitted(centre, change, epsilon))

    @classmethod
    @abstractmethod
    def fitted(cls, centre: torch.Tensor, change: torch.Tensor, epsilon: torch.Tensor) -> torch.Tensor:
        """The images with this change, made to fit the ball."""

    @abstractmethod
    def budget(self, room: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        """Size of the new window by channel, (n, C, 1).

        Args:
            room: (n, 1, 1), what the image lacks to the radius, as a power.
            held: (n, C, 1), what both windows held, as a power.
        """

    def propose(self, side: int, choices: _Choices, query: int) -> torch.Tensor:
        """Moves what one window of each example holds to another; always new."""
        n, *shape = self.centre.shape
        places = choices.corners[query].unsqueeze(2) + _window(side, *shape, self.centre.device)
        into, emptied = places.unbind(1)
        change = (self.current - self.centre).view(n, -1)
        room = (self.epsilon.view(-1, 1, 1) ** self.power - self._power_of(change.unsqueeze(1))).clamp_(min=0)
        old = change.gather(1, into).view(n, shape[0], -1)
        held = self._power_of(old)
        change.scatter_(1, into, 0)  # what lies in both windows counts once
        both = held + self._power_of(change.gather(1, emptied).view_as(old))
        pattern = _pattern(side, self.power, self.centre.device)[choices.turned[query]].unsqueeze(1)
        new = pattern * choices.colours[query].unsqueeze(2) + old / (held ** (1 / self.power) + 1e-12)
        new *= self.budget(room, both) / (self._power_of(new) ** (1 / self.power) + 1e-12)
        change.scatter_(1, emptied, 0).scatter_(1, into, new.view(n, -1))
        self.trial = self.fitted(self.centre, change.view_as(self.centre), self.epsilon)
        return self.everyone()

    def accept(self, improved: torch.Tensor) -> None:
        """Takes the trials of these examples."""
        self.current = torch.where(improved.view(-1, 1, 1, 1), self.trial, self.current)

    def _power_of(self, vectors: torch.Tensor) -> torch.Tensor:
        """The norm of each last dimension to its power, which is kept."""
        powers = vectors.square() if self.power == 2 else vectors.abs()
        return powers.sum(dim=-1, keepdim=True)


class _L2Search(_PatternSearch):
    """All that the radius allows is spent: a change that [0, 1] has cut is stretched again (Alg. 3)."""

    power = 2

    @classmethod
    def fitted(cls, centre: torch.Tensor, change: torch.Tensor, epsilon: torch.Tensor) -> torch.Tensor:
        """Scales the change to the radius and cuts to [0, 1]."""
        return torch.addcmul(centre, change, epsilon / (lengths(change) + 1e-12)).clamp_(0, 1)

    def budget(self, room: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        """The room is shared among the channels."""
        return (room / self.centre.shape[1] + held).sqrt()


class _L1Search(_PatternSearch):
    """As in L2, with steeper pyramids and a projection (Croce & Hein 2021, section 4)."""

    power = 1

    @classmethod
    def fitted(cls, centre: torch.Tensor, change: torch.Tensor, epsilon: torch.Tensor) -> torch.Tensor:
        """The nearest image in the ball."""
        return ball("l1", centre, epsilon.flatten()).project_(centre + change)

    def budget(self, room: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        """As much in every channel as the image lacks: the projection sees to the rest."""
        return room + held * self.centre.shape[1]


_SEARCHES: dict[Norm, type[_LinfSearch] | type[_L2Search] | type[_L1Search]] = {
    "linf": _LinfSearch,
    "l2": _L2Search,
    "l1": _L1Search,
}


@lru_cache(maxsize=64)
def _window(side: int, channels: int, height: int, width: int, device: torch.device) -> torch.Tensor:
    """(C * side * side,) int64: places of the window in the upper left corner, counted through the whole image."""
    across = torch.arange(side, device=device)
    plane = (across.unsqueeze(1) * width + across).flatten()
    return (torch.arange(channels, device=device).unsqueeze(1) * (height * width) + plane).flatten()


@lru_cache(maxsize=64)
def _pattern(side: int, power: int, device: torch.device) -> torch.Tensor:
    """(2, side * side): a pyramid over an opposite one, of norm one together; and the same transposed."""
    upper = _pyramid(side // 2, side, power)
    lower = _pyramid(side - side // 2, side, power)
    both = torch.cat([upper, -lower])
    both /= torch.linalg.vector_norm(both, power)
    return torch.stack([both, both.T]).flatten(1).to(device)


def _pyramid(height: int, width: int, power: int) -> torch.Tensor:
    """(height, width) of norm one: the sum of concentric squares, the k-th as high as 1 / k**2, or 1 / k**4 in L1."""
    rings = max(height, width) // 2 + 1
    steps = torch.arange(1, rings + 1, dtype=torch.float32) ** (-2 if power == 2 else -4)
    heights = steps.flip(0).cumsum(0).flip(0)  # a pixel lies in every square from its own ring outwards
    down = (torch.arange(height) - height // 2).abs().unsqueeze(1)
    across = (torch.arange(width) - width // 2).abs()
    pyramid = heights[torch.maximum(down, across)]
    pyramid /= torch.linalg.vector_norm(pyramid, power)
    return pyramid
