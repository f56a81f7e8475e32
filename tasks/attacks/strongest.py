"""The bookkeeping that attacks share: the strongest attempt so far for each example."""

from __future__ import annotations

import torch


class Strongest:
    """For each example of a batch the first image that fools the model, else the one of greatest loss.

    Args:
        images: (N, C, H, W), what comes back for an example that is never noted.
    """

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images.clone()
        self.losses = torch.full((len(images),), -torch.inf, device=images.device)
        self.broken = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def standing(self) -> torch.Tensor:
        """Indices of the examples that nothing has broken yet."""
        return (~self.broken).nonzero().squeeze(1)

    def note(
        self, rows: torch.Tensor, images: torch.Tensor, losses: torch.Tensor, fooled: torch.Tensor
    ) -> torch.Tensor:
        """Takes attempts (n, C, H, W) at the standing examples `rows` (n,) into account.

        Args:
            rows: (n,) indices, each once, none of them broken before.
            images: (n, C, H, W), copied.
            losses: (n,), the larger, the closer to a mistake.
            fooled: (n,) bool, whether the attempt succeeded.

        Returns:
            `fooled`, to drop these examples.
        """
        better = (fooled | (losses > self.losses[rows])).nonzero().squeeze(1)
        improved = rows[better]
        self.images[improved] = images[better]
        self.losses[improved] = losses[better]
        self.broken[rows] = fooled
        return fooled
