"""Attacks that look for the nearest mistake instead of any mistake within a radius, and their bookkeeping."""

from __future__ import annotations

import torch
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.ball import ball
from tasks.attacks.draws import Draws


class MinimumNorm(Attack):
    """An attack that makes the change as small as it can: one search serves every epsilon."""

    def nearest(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, draws: Draws
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The nearest misclassified images found, in [0, 1], and which were found at all.

        Args:
            model: in evaluation mode, images to logits.
            images: (N, C, H, W) in [0, 1].
            labels: (N,) int64, the true classes.
            draws: the only source of randomness: N examples.

        Returns:
            images (N, C, H, W), where nothing was found any attempt; and (N,) bool.
        """
        raise NotImplementedError

    def search(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        """The nearest mistakes; those that are too far away, moved onto the ball."""
        found, _ = self.nearest(model, images, labels, draws)
        within = ball(self.norm, images, epsilon)
        return torch.where(within.contains(found).view(-1, 1, 1, 1), found, within.project_(found.clone()))


class Nearest:
    """For each example of a batch the nearest image that fools the model, else the latest attempt.

    Args:
        images: (N, C, H, W), what comes back for an example that is never noted.
    """

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images.clone()
        self.distances = torch.full((len(images),), torch.inf, device=images.device)
        self.found = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def note(self, rows: torch.Tensor, images: torch.Tensor, distances: torch.Tensor, fooled: torch.Tensor) -> None:
        """Takes attempts (n, C, H, W) at the examples `rows` (n,) into account.

        Args:
            rows: (n,) indices, each once.
            images: (n, C, H, W), copied.
            distances: (n,), how far the attempts are from the originals.
            fooled: (n,) bool, whether they succeeded.
        """
        nearer = fooled & (distances < self.distances[rows])
        taken = (nearer | ~(fooled | self.found[rows])).nonzero().squeeze(1)
        self.images[rows[taken]] = images[taken]
        self.distances[rows] = torch.where(nearer, distances, self.distances[rows])
        self.found[rows] |= fooled
