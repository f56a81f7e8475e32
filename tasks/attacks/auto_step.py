"""The engine of Auto-PGD: projected ascent whose step sizes follow from how the loss has risen so far."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.ball import Ball, L1Ball, Norm, ball
from tasks.attacks.draws import Draws
from tasks.attacks.losses import climb, surely_fooled
from tasks.attacks.strongest import Strongest

Goals = tuple[torch.Tensor, ...]
"""What the loss takes after the logits: labels (N,), for targeted losses then targets (N,)."""


class Ascent(ABC):
    """Where the ascents of a batch stand; every tensor has one row an example that is still attacked.

    Args:
        within: the balls to stay in.
        start: (N, C, H, W), the first iterate.
        goals: labels first.
        rows: (N,), the examples' indices in the whole batch.
    """

    def __init__(self, within: Ball, start: torch.Tensor, goals: Goals, rows: torch.Tensor) -> None:
        self.within = within
        self.goals = goals
        self.rows = rows
        self.current = self.previous = self.best = start
        self.gradient = self.best_gradient = torch.zeros_like(start)
        self.best_losses = torch.full_like(start[:, 0, 0, 0], -torch.inf)

    @abstractmethod
    def move(self, first: bool) -> None:
        """Takes one step along the gradient."""

    @abstractmethod
    def review(self, interval: int) -> None:
        """Adapts the steps to come to what the last `interval` have brought."""

    @abstractmethod
    def checkpoints(self, steps: int) -> dict[int, int]:
        """After which of so many steps to review, and how many steps have passed since the review before."""

    def note(self, losses: torch.Tensor, gradient: torch.Tensor) -> None:
        """Remembers what the current iterates have reached."""
        better = losses > self.best_losses
        self.gradient = gradient
        self.best = torch.where(_wide(better), self.current, self.best)
        self.best_gradient = torch.where(_wide(better), gradient, self.best_gradient)
        self.best_losses = torch.where(better, losses, self.best_losses)

    def go_back(self, where: torch.Tensor) -> None:
        """Continues from the best iterates there, (N,) bool."""
        self.current = torch.where(_wide(where), self.best, self.current)
        self.gradient = torch.where(_wide(where), self.best_gradient, self.gradient)

    def keep(self, kept: torch.Tensor) -> None:
        """Goes on with these rows alone."""
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value[kept])
        self.goals = tuple(goal[kept] for goal in self.goals)
        self.within = self.within.at(kept)


class HalvingAscent(Ascent):
    """Steps with momentum that start at two radii and are halved where the loss stops rising (Croce & Hein 2020)."""

    def __init__(self, within: Ball, start: torch.Tensor, goals: Goals, rows: torch.Tensor, rho: float) -> None:
        super().__init__(within, start, goals, rows)
        self.rho = rho
        self.step = 2 * torch.as_tensor(within.epsilon)
        self.losses = torch.full_like(self.best_losses, torch.inf)  # the start is no rise
        self.rises = torch.zeros_like(self.best_losses)
        self.halved = torch.ones_like(self.best_losses, dtype=torch.bool)
        self.losses_at_review = self.best_losses

    def move(self, first: bool) -> None:
        """A projected step, then a part of it and of the step before, projected again (section 3.1)."""
        ahead = self.current.clone()
        self.within.step_(ahead, self.gradient, self.step)
        share = 1.0 if first else 0.75
        ahead.sub_(self.current).mul_(share).add_(self.current).add_(self.current - self.previous, alpha=1 - share)
        self.previous, self.current = self.current, self.within.project_(ahead)
        if first:  # the authors' code compares the first step with zero, not with the start: kept, to agree with it
            self.losses = torch.zeros_like(self.losses)

    def note(self, losses: torch.Tensor, gradient: torch.Tensor) -> None:
        """Counts the steps that raised the loss."""
        super().note(losses, gradient)
        self.rises = self.rises + (losses > self.losses)
        self.losses = losses

    def review(self, interval: int) -> None:
        """Halves a step that rarely raised the loss, or was kept last time and found nothing better (section 3.2)."""
        stuck = ~self.halved & (self.best_losses <= self.losses_at_review)
        self.halved = (self.rises <= self.rho * interval) | stuck
        self.step = torch.where(_wide(self.halved), self.step / 2, self.step)
        self.go_back(self.halved)
        self.losses_at_review = self.best_losses
        self.rises = torch.zeros_like(self.rises)

    def checkpoints(self, steps: int) -> dict[int, int]:
        """The first after 0.22 of the steps, each interval 0.03 shorter than the last, down to 0.06."""
        interval = max(int(0.22 * steps), 1)
        shorter, shortest = max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)
        found: dict[int, int] = {}
        done = interval
        while done <= steps:
            found[done] = interval
            interval = max(interval - shorter, shortest)
            done += interval
        return found


class SparseAscent(Ascent):
    """Steps in few pixels, for L1: as the best change gets sparser, so do they (Croce & Hein 2021, section 3)."""

    within: L1Ball

    def __init__(self, within: L1Ball, start: torch.Tensor, goals: Goals, rows: torch.Tensor) -> None:
        super().__init__(within, start, goals, rows)
        self.longest = torch.as_tensor(within.epsilon)
        self.step = self.longest
        self.changed = self._changed()

    def move(self, first: bool) -> None:
        """A projected step in two thirds as many pixels as the best iterate at the last review had changed."""
        pixels = self.current[0].numel()
        # The places counted from the smallest gradient, rounded as in the authors' code.
        place = ((1 - self.changed / pixels / 1.5) * pixels).long().clamp_(0, pixels - 1)
        ahead = self.current.clone()
        self.within.step_few_(ahead, self.gradient, self.step, pixels - place)
        self.previous, self.current = self.current, ahead

    def review(self, interval: int) -> None:
        """Where the best change became sparser: back to it and to the longest step; elsewhere a shorter step."""
        changed = self._changed()
        sparser = changed / self.changed < 0.95
        shorter = (self.step / 1.5).maximum(self.longest / 10)
        self.step = torch.where(_wide(sparser), self.longest, shorter)
        self.changed = changed
        self.go_back(sparser)

    def checkpoints(self, steps: int) -> dict[int, int]:
        """One in every 0.04 of the steps."""
        interval = max(int(0.04 * steps), 1)
        return dict.fromkeys(range(interval, steps + 1, interval), interval)

    def _changed(self) -> torch.Tensor:
        """How many values of the best iterates differ from the images': (N,) float32."""
        return (self.best != self.within.centre).flatten(1).sum(dim=1, dtype=torch.float32)


class AutoStep(Attack):
    """What the attacks with Auto-PGD's steps share."""

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")

    steps: int = Field(default=100, ge=1)
    """Steps of each ascent."""
    restarts: int = Field(default=1, ge=1)
    """Random starts in all, of each target if there are targets."""
    rho: float = Field(default=0.75, gt=0, lt=1)
    """Share of the steps between two checkpoints that must raise the loss, or the step is halved; not used in L1."""
    eot: int = Field(default=1, ge=1)
    """Passes whose gradients are averaged at every step, for models that draw random numbers (Athalye et al. 2018)."""

    def ascend(
        self,
        model: nn.Module,
        images: torch.Tensor,
        loss: Callable[..., torch.Tensor],
        goals: Goals,
        epsilon: torch.Tensor,
        draws: Draws,
        best: Strongest,
    ) -> None:
        """One ascent from a random start for every example that still stands in `best`, which it updates.

        Args:
            model: in evaluation mode, images to logits.
            images: (N, C, H, W) in [0, 1].
            loss: from logits (n, K) and `goals` to what is climbed, (n,).
            goals: labels (N,) first.
            epsilon: (N,) radii.
            draws: of all N examples; the start is drawn from them with no further purpose than "start".
            best: of all N examples.
        """
        rows = best.standing()
        if not len(rows):
            return
        images, epsilon, draws = images[rows], epsilon[rows], draws.at(rows)
        goals = tuple(goal[rows] for goal in goals)
        if self.norm != "l1":
            within = ball(self.norm, images, epsilon)
            halving = HalvingAscent(within, within.surface(draws, "start"), goals, rows, self.rho)
            self._run(halving, model, loss, self.steps, best)
            return
        phases = _phases(self.steps)
        start = L1Ball(images, phases[0][0] * epsilon).surface(draws, "start")
        for scale, steps in phases:
            wide = L1Ball(images, scale * epsilon)
            sparse = SparseAscent(wide, wide.project_(start), goals, rows)
            self._run(sparse, model, loss, steps, best if scale == 1 else None)
            start = sparse.best

    def _run(
        self, ascent: Ascent, model: nn.Module, loss: Callable[..., torch.Tensor], steps: int, best: Strongest | None
    ) -> None:
        """Takes the steps. With `best` given, examples that surely fall are noted there and dropped at once."""
        checkpoints = ascent.checkpoints(steps)
        for done in range(steps + 1):
            if done:
                ascent.move(first=done == 1)
            logits, losses, gradient = climb(model, ascent.current, lambda found: loss(found, *ascent.goals), self.eot)
            if best is not None:
                standing = ~surely_fooled(logits, ascent.goals[0], self.eot)
                kept = standing.nonzero().squeeze(1)
                if len(kept) < len(standing):
                    fallen = (~standing).nonzero().squeeze(1)
                    best.note(ascent.rows[fallen], ascent.current[fallen], losses[fallen], ~standing[fallen])
                    losses, gradient = losses[kept], gradient[kept]
                    ascent.keep(kept)
                if not len(kept):
                    return
            ascent.note(losses, gradient)
            if done in checkpoints:
                ascent.review(checkpoints[done])
        if best is not None:
            best.note(ascent.rows, ascent.best, ascent.best_losses, torch.zeros_like(ascent.rows, dtype=torch.bool))


def _phases(steps: int) -> list[tuple[float, int]]:
    """For L1: radii in units of the ball's, and the steps in each (Croce & Hein 2021, section 3.3)."""
    early = math.ceil(0.3 * steps)
    return [(3.0, early), (2.0, early), (1.0, max(steps - 2 * early, 0))]


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1, 1, 1, 1)
