"""The shortest ways onto hyperplanes that stay in [0, 1]: exact, without sorting, for many points at once."""

from __future__ import annotations

from itertools import count

import torch

from tasks.attacks.ball import Norm

_UNCHECKED = 4
"""Newton steps from one test of convergence to the next: a test makes a GPU wait. Images need 3 to 8 in all."""


class Hyperplanes:
    """Hyperplanes known by their normals, one a row, in the norm that lengths are measured in.

    Only moves that raise the inner product with the normal, or only those that lower it, can be part of a shortest way.
    That leaves how far each coordinate goes: with magnitudes a of the normal, room u up to the end of the range and r
    missing to the inner product, the problem is to find 0 <= m <= u with a.m = r and m as short as can be. (Croce &
    Hein 2020, section 2, solve the same three problems by sorting.) Its Karush-Kuhn-Tucker conditions say:

    - m = min(t, u) in linf and m = min(t a, u) in l2 for one number t a row. The inner product is a concave, piecewise
      linear function of t, so Newton's method from 0 rises to the solution, passes a kink at every step and is exactly
      there after finitely many.
    - m = u in l1 where a exceeds one number t a row, and 0 where it is below: the inner product falls as t grows, and
      t, which is one of the floats a, is found by halving the range of floats.

    Args:
        norm: linf, l2 or l1.
        normals: (N, D); a zero normal has no hyperplane, and nothing moves.
    """

    def __init__(self, norm: Norm, normals: torch.Tensor) -> None:
        magnitudes = normals.abs()
        self._tiny = torch.finfo(normals.dtype).tiny
        # The largest magnitude becomes 1, so that no square underflows.
        self._scale = magnitudes.amax(dim=1, keepdim=True).clamp_min(self._tiny)
        self._signs = normals.sign()
        self._magnitudes = magnitudes / self._scale
        self._norm = norm

    def ways(self, points: torch.Tensor, rise: torch.Tensor) -> torch.Tensor:
        """The shortest changes that put the points on their hyperplanes.

        Where the hyperplane misses the box the change leads to the corner that comes closest to it: the inner product
        changes as far as it can.

        Args:
            points: (N, D) in [0, 1].
            rise: (N,), by how much the inner products with the normals must change.

        Returns:
            (N, D); the points stay in [0, 1] when it is added to them.
        """
        directions = self._signs * rise.sign().unsqueeze(1)
        room = directions.mul(0.5).add_(0.5).sub_(points).abs_()  # to 1 where it goes up, to 0 where it goes down
        missing = rise.abs().unsqueeze(1) / self._scale
        moves = self._steepest_first(room, missing) if self._norm == "l1" else self._all_at_once(room, missing)
        return moves.mul_(directions)

    def _all_at_once(self, room: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
        """How far each coordinate goes in linf, where all have one speed, and l2, where speeds are magnitudes."""
        speeds = self._magnitudes if self._norm == "l2" else torch.ones_like(missing)
        slopes, reach = self._magnitudes * speeds, self._magnitudes * room
        most = torch.finfo(room.dtype).max
        time = torch.full_like(missing, most).masked_fill_(reach.sum(dim=1, keepdim=True) > missing, 0)
        for step in count(1):
            moving = torch.gt(room, time * speeds, out=torch.empty_like(room))
            stopped = torch.addcmul(reach, reach, moving, value=-1).sum(dim=1, keepdim=True)
            slope = moving.mul_(slopes).sum(dim=1, keepdim=True)
            arrival = (missing - stopped) / slope.clamp_min(self._tiny)
            # Without the maximum, rounding might lead back and the steps go on for ever. A row that has arrived stays
            # where it is, to the last bit, however many more steps the others take.
            before, time = time, torch.maximum(time, arrival).clamp_(max=most)
            if step % _UNCHECKED == 0 and not (time > before).any():
                break
        return torch.minimum(time * speeds, room)

    def _steepest_first(self, room: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
        """How far each coordinate goes in l1: all the way from the largest magnitude on, until enough is reached."""
        magnitudes, reach = self._magnitudes, self._magnitudes * room
        ordered_as = torch.int32 if room.dtype == torch.float32 else torch.int64  # floats from 0 up: so are their bits
        low = torch.zeros_like(missing).view(ordered_as)
        high = torch.ones_like(missing).view(ordered_as)
        for _ in range(8 * room.element_size() - 2):
            middle = (low + high) >> 1
            steeper = torch.gt(magnitudes, middle.view(room.dtype), out=torch.empty_like(room))
            too_far = steeper.mul_(reach).sum(dim=1, keepdim=True) > missing
            low, high = torch.where(too_far, middle + 1, low), torch.where(too_far, high, middle)
        last = high.view(room.dtype)
        steeper = torch.gt(magnitudes, last, out=torch.empty_like(room))
        level = torch.eq(magnitudes, last, out=torch.empty_like(room))  # several if magnitudes are equal: all alike
        left = missing - (reach * steeper).sum(dim=1, keepdim=True)
        share = (left / (reach * level).sum(dim=1, keepdim=True).clamp_min(self._tiny)).clamp_(0, 1)
        return steeper.addcmul_(level, share).mul_(room)
