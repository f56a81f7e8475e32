"""The walk of the fast adaptive boundary attack, which its two members aim at different classes."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from tasks.attacks.ball import Norm, ball
from tasks.attacks.box_hyperplane import Hyperplanes
from tasks.attacks.draws import Draws
from tasks.attacks.minimum_norm import MinimumNorm, Nearest

_START_RADIUS: dict[Norm, float] = {"linf": 0.3, "l2": 1.0, "l1": 5.0}


class NearestBoundary(MinimumNorm):
    """A walk along the decision boundary towards the image (Croce & Hein 2020, "Minimally distorted", algorithm 1).

    A step goes to the boundary of the model made linear where the walk is, and a step that ends in a mistake is
    followed by one back towards the image.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")

    steps: int = Field(default=100, ge=1)
    """Steps of each walk."""
    restarts: int = Field(default=1, ge=1)
    """Walks in all (towards each target, for the targeted attack): the first from the image, others from near it."""
    alpha_max: float = Field(default=0.1, ge=0, le=1)
    """Largest share of the image's own projection in a step."""
    eta: float = Field(default=1.05, ge=1)
    """How far a step goes, as a multiple of the way to the boundary."""
    beta: float = Field(default=0.9, gt=0, lt=1)
    """What is left of a change that succeeded, when the walk goes on from it."""
    start_radius: float | None = Field(default=None, gt=0)
    """Later walks start half this far from the image, or half as far as the nearest mistake so far if that is less;
    0.3, 1 and 5 in linf, l2 and l1 unless given, as in the authors' code."""

    def rounds(self, rivals: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The classes to walk towards, one round after the other, each (N, k): in a round, whichever is closest.

        Args:
            rivals: (N, classes - 1) int64, all classes but the label, the largest logit first.
        """
        raise NotImplementedError

    @torch.no_grad()
    def nearest(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, draws: Draws
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The nearest mistakes of all walks, (N, C, H, W), and which images have one, (N,) bool."""
        best = self._walk_all(model, images, labels, torch.zeros(len(images), device=images.device), draws)
        return best.images, best.found

    @torch.no_grad()
    def search(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        """Mistakes within epsilon, and the nearest mistake moved onto the ball where there is none.

        An example is done with its first mistake within epsilon. The others walk as in `nearest`, so the images that
        have one are the same as there.
        """
        found = self._walk_all(model, images, labels, epsilon, draws).images
        within = ball(self.norm, images, epsilon)
        return torch.where(within.contains(found).view(-1, 1, 1, 1), found, within.project_(found.clone()))

    def _walk_all(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, enough: torch.Tensor, draws: Draws
    ) -> Nearest:
        """All walks of all images, where an image is done once it has a mistake at a distance of `enough`, (N,)."""
        logits = model(images)
        best = Nearest(images)
        everyone = torch.arange(len(images), device=images.device)
        best.note(everyone, images, torch.zeros_like(enough), logits.argmax(dim=1) != labels)
        others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
        ranked = others.argsort(dim=1, descending=True, stable=True)
        for number, rivals in enumerate(self.rounds(ranked[:, :-1])):
            for restart in range(self.restarts):
                rows = (best.distances > enough).nonzero().squeeze(1)
                if not len(rows):
                    return best
                start = images[rows]
                if restart:
                    radii = 0.5 * best.distances[rows].clamp(max=self.start_radius or _START_RADIUS[self.norm])
                    start = self._near(start, radii, draws.at(rows).under("start", number, restart))
                self._walk(model, start, images, labels, rivals, enough, rows, best)
        return best

    def _near(self, images: torch.Tensor, radii: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Images at these distances in random directions, cut to [0, 1]."""
        shape = tuple(images.shape[1:])
        direction = draws.uniform(shape).mul_(2).sub_(1) if self.norm == "linf" else draws.normal(shape)
        share = radii / _length(self.norm, direction.flatten(1)).clamp_min(1e-30)
        return images.addcmul(direction, share.view(-1, 1, 1, 1)).clamp_(0, 1)

    def _walk(
        self,
        model: nn.Module,
        current: torch.Tensor,
        images: torch.Tensor,
        labels: torch.Tensor,
        rivals: torch.Tensor,
        enough: torch.Tensor,
        rows: torch.Tensor,
        best: Nearest,
    ) -> None:
        """One walk of the examples `rows` from `current`, noting in `best` what it finds."""
        images, labels, rivals = images[rows], labels[rows], rivals[rows]
        for _ in range(self.steps):
            gap, normal = self._closest_boundary(model, current, labels, rivals)
            current = self._step(current, images, gap, normal)
            fooled = model(current).argmax(dim=1) != labels
            best.note(rows, current, _length(self.norm, (current - images).flatten(1)), fooled)
            kept = (best.distances[rows] > enough[rows]).nonzero().squeeze(1)
            current = torch.lerp(images, current, torch.where(fooled, self.beta, 1.0).view(-1, 1, 1, 1))
            if len(kept) < len(rows):
                if not len(kept):
                    return
                rows, current, images = rows[kept], current[kept], images[kept]
                labels, rivals = labels[kept], rivals[kept]

    def _closest_boundary(
        self, model: nn.Module, current: torch.Tensor, labels: torch.Tensor, rivals: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """By how much the logit of a rival exceeds that of the label, (n,), and its gradient, (n, C, H, W).

        Of several rivals it is the one whose boundary, were the model linear, is closest.
        """
        current = current.detach().requires_grad_()
        with torch.enable_grad():
            logits = model(current)
            gaps = (logits.gather(1, rivals) - logits.gather(1, labels.unsqueeze(1))).unbind(dim=1)
            sums = [gap.sum() for gap in gaps]
        (nearest,) = torch.autograd.grad(sums[0], current, retain_graph=len(gaps) > 1)
        gap = gaps[0].detach()
        if len(gaps) == 1:
            return gap, nearest
        distance = self._linear_distance(gap, nearest)
        for other, total in zip(gaps[1:], sums[1:], strict=True):
            (gradient,) = torch.autograd.grad(total, current, retain_graph=total is not sums[-1])
            its = self._linear_distance(other.detach(), gradient)
            closer = its < distance
            distance, gap = torch.where(closer, its, distance), torch.where(closer, other.detach(), gap)
            nearest = torch.where(closer.view(-1, 1, 1, 1), gradient, nearest)
        return gap, nearest

    def _linear_distance(self, gap: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        dual: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
        return gap.abs() / (_length(dual[self.norm], gradient.flatten(1)) + 1e-12)

    def _step(
        self, current: torch.Tensor, images: torch.Tensor, gap: torch.Tensor, normal: torch.Tensor
    ) -> torch.Tensor:
        """A little beyond the linearised boundary, between the points on it closest to `current` and to the image.

        The nearer `current` is to the boundary, the less the image attracts it.
        """
        here, origin, slope = current.flatten(1), images.flatten(1), normal.flatten(1)
        planes = Hyperplanes(self.norm, slope)
        way = planes.ways(here, -gap)
        way_from_image = planes.ways(origin, (slope * (here - origin)).sum(dim=1) - gap)
        length = _length(self.norm, way).clamp_min(1e-8)
        length_from_image = _length(self.norm, way_from_image).clamp_min(1e-8)
        alpha = (length / (length + length_from_image)).clamp(max=self.alpha_max).unsqueeze(1)
        goal, goal_from_image = here.add(way, alpha=self.eta), origin.add(way_from_image, alpha=self.eta)
        return torch.lerp(goal, goal_from_image, alpha).clamp_(0, 1).view_as(current)


def _length(norm: Norm, vectors: torch.Tensor) -> torch.Tensor:
    """Lengths of the rows of (N, D) in linf, l2 or l1: (N,)."""
    if norm == "l2":
        found: torch.Tensor = torch.linalg.vector_norm(vectors, dim=1)
        return found
    return vectors.abs().amax(dim=1) if norm == "linf" else vectors.abs().sum(dim=1)
