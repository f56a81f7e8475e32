"""Adversarial images that are made on another network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, PrivateAttr
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.ball import ball
from tasks.attacks.draws import Draws
from tasks.attacks.losses import climb, cross_entropy, margin
from tasks.attacks.strongest import Strongest


class Transfer(Attack):
    """Momentum iterations on another network, each iterate tried on this one (Dong et al. 2018, algorithm 1).

    It needs no gradient of the network that is attacked, so where it wins over attacks that follow them, these are
    masked. An image goes on changing when it fools the other network: what counts is the one under attack.
    """

    gradients: ClassVar[bool] = False

    kind: Literal["transfer"] = "transfer"
    source: str
    """The name of the other network."""
    steps: int = Field(default=20, ge=1)
    """Steps, and images tried."""
    relative_step: float | None = Field(default=None, gt=0)
    """Length of a step as a share of epsilon; `2 / steps` unless given."""
    decay: float = Field(default=1.0, ge=0)
    """Of the momentum."""

    _surrogate: nn.Module | None = PrivateAttr(default=None)

    def label(self) -> str:
        """With the name of the other network."""
        return f"transfer-{self.source}"

    def crafted_on(self, surrogates: Mapping[str, nn.Module]) -> Self:
        """The same attack with its other network at hand, in evaluation mode and on the device of the images."""
        bound = self.model_copy()
        bound._surrogate = surrogates[self.source]
        return bound

    def search(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        """For each example the first iterate that fools the model, else the one with the smallest margin.

        Raises:
            RuntimeError: no network was given to `crafted_on`.
        """
        if self._surrogate is None:
            raise RuntimeError(f"transfer from '{self.source}' was not given that network; call `crafted_on` first")
        within = ball(self.norm, images, epsilon)
        best = Strongest(images)
        rows = best.standing()
        current, velocity = images.clone(), torch.zeros_like(images)
        share = self.relative_step or 2 / self.steps
        for _ in range(self.steps):
            kept_labels = labels[rows]
            _, _, gradient = climb(self._surrogate, current, lambda found: cross_entropy(found, kept_labels))  # noqa: B023
            size = gradient.flatten(1).abs().mean(dim=1).view(-1, 1, 1, 1)
            velocity = self.decay * velocity + gradient / size.clamp_min(torch.finfo(gradient.dtype).tiny)
            within.step_(current, velocity, share * within.epsilon)
            with torch.no_grad():
                logits = model(current)
            fooled = best.note(rows, current, margin(logits, kept_labels), logits.argmax(dim=1) != kept_labels)
            if fooled.any():
                kept = (~fooled).nonzero().squeeze(1)
                if not len(kept):
                    break
                current, velocity, rows, within = current[kept], velocity[kept], rows[kept], within.at(kept)
        return best.images
