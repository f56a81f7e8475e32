"""The attack that walks to the boundary of the linearised model."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from tasks.attacks.ball import Norm, ball, unit
from tasks.attacks.draws import Draws
from tasks.attacks.minimum_norm import MinimumNorm, Nearest


class DeepFool(MinimumNorm):
    """DeepFool: repeated steps to the nearest linearised class boundary (Moosavi-Dezfooli et al. 2016, algorithm 2).

    An example stops as soon as it is misclassified. Fast, and farther from the image than DDN or FMN.
    """

    kind: Literal["deepfool"] = "deepfool"
    norms: ClassVar[tuple[Norm, ...]] = ("l2", "linf")
    norm: Norm = "l2"
    steps: int = Field(default=50, ge=1)
    """Steps at most."""
    overshoot: float = Field(default=0.02, ge=0)
    """Share by which the sum of all steps is lengthened, to end up beyond the boundary."""
    candidates: int = Field(default=10, ge=2)
    """Classes considered: the label, and of the others those of the largest logits at the image itself."""

    def nearest(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, draws: Draws
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The first misclassified iterates; draws nothing."""
        rows = torch.arange(len(images), device=images.device)
        best = Nearest(images)
        current, total = images.detach(), torch.zeros_like(images)
        others: torch.Tensor | None = None
        for step in range(self.steps + 1):
            with torch.enable_grad():
                current.requires_grad_()
                logits = model(current)
            fooled = logits.argmax(dim=1) != labels[rows]
            distances = ball(self.norm, images[rows], 0.0).distances(current.detach())
            best.note(rows, current.detach(), distances, fooled)
            kept = (~fooled).nonzero().squeeze(1)
            if step == self.steps or not len(kept):
                break
            if others is None:
                others = _likeliest(logits.detach(), labels, self.candidates - 1)
            gaps, slopes = _boundaries(logits, current, labels[rows], others)
            rows, others, total = rows[kept], others[kept], total[kept]
            total += self._step(gaps[kept], slopes[kept])
            current = (images[rows] + (1 + self.overshoot) * total).clamp_(0, 1)
        return best.images, best.found

    def _step(self, gaps: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
        """The shortest change that reaches a boundary of the linearised model, (N, C, H, W).

        Args:
            gaps: (N, K) what the logit of each other class lacks.
            slopes: (N, K, C, H, W), the gradients of that.
        """
        dual = torch.linalg.vector_norm(slopes.flatten(2), ord=1 if self.norm == "linf" else 2, dim=2)
        flat = dual == 0  # there is no boundary that way
        reach = torch.where(flat, torch.inf, gaps.abs() / torch.where(flat, 1, dual))
        nearest = reach.argmin(dim=1)
        row = torch.arange(len(gaps), device=gaps.device)
        # The 1e-4 is that of the authors' program, for boundaries that are met exactly.
        size = torch.where(flat[row, nearest], 0, reach[row, nearest] + 1e-4).view(-1, 1, 1, 1)
        slope = slopes[row, nearest]
        return size * (slope.sign() if self.norm == "linf" else unit(slope))


def _likeliest(logits: torch.Tensor, labels: torch.Tensor, count: int) -> torch.Tensor:
    """The classes other than the label that have the largest logits, (N, at most `count`)."""
    order = logits.argsort(dim=1, descending=True, stable=True)
    others = order[order != labels.unsqueeze(1)].view(len(labels), -1)
    return others[:, :count]


def _boundaries(
    logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor, others: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each other class the logit's lead (N, K) over the label's, and its gradients (N, K, C, H, W)."""
    with torch.enable_grad():
        leads = logits.gather(1, others) - logits.gather(1, labels.unsqueeze(1))
    slopes = [torch.autograd.grad(lead.sum(), images, retain_graph=True)[0] for lead in leads.unbind(dim=1)]
    return leads.detach(), torch.stack(slopes, dim=1)
