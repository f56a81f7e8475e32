"""Early-bird tickets: training ends as soon as the mask that it would be pruned to stands still."""

from __future__ import annotations

from typing import Literal, cast

import torch
from pydantic import Field
from torch import nn

from tasks.models.prunable import prunable
from tasks.pruning.mask import Mask
from tasks.pruning.sparsifiers import Change, Stage
from tasks.pruning.sparsifiers.to_density import Aim, ToDensity


class EarlyBird(ToDensity):
    """Early-bird tickets, found once the magnitude mask stands still (You et al. 2020; robust: Xi et al. 2022).

    At the end of every epoch, or more or less often, the mask is drawn that magnitude pruning to `density` would leave,
    and compared with each of the `window` masks drawn before it, by the share of the weights it keeps that the other
    does not keep. (Published distances are shares of all positions, so twice the density times these.) Training ends
    when the largest of these distances is below `distance`; a `Prune` to the same density and scope then draws the
    ticket. Under an adversarial objective the ticket is robust. If the mask never
    stands still, the whole schedule is trained, as if nothing had watched.

    The metric `stopped` of the training is {why: early-bird, distances, detected_at}: distances from the mask to those
    before it, the oldest first, and the step.
    """

    kind: Literal["early-bird"] = "early-bird"
    distance: float = Field(default=0.25, gt=0, lt=1)
    """Masks less than this apart are the same."""
    window: int = Field(default=5, ge=1)
    """How many earlier masks must be that near."""
    every: float = Field(default=1.0, gt=0)
    """Epochs between two masks; 0.05 in Xi et al. 2022. Rounded to steps."""

    def memory(self, model: nn.Module, mask: Mask | None) -> nn.Module:
        """`drawn`, how many masks there were, and `masks`, the last of them, (window, N) bool in a ring.

        Raises:
            ValueError: fewer weights are left than should be kept, or the spared layer leaves none to the rest.
        """
        aim = self.aim(model, mask)
        aim.register_buffer("drawn_masks", torch.zeros((), dtype=torch.int64))
        aim.register_buffer("masks", torch.zeros(self.window, aim.within.total, dtype=torch.bool))
        return aim

    def after_step(self, model: nn.Module, memory: nn.Module, stage: Stage) -> Change | None:
        """Draws a mask when it is time to; the end of training if it is an old one."""
        if stage.step % max(round(self.every * stage.per_epoch), 1):
            return None
        aim, masks, count = cast(Aim, memory), memory.get_buffer("masks"), memory.get_buffer("drawn_masks")
        scores = {name: kernel.detach().abs() for name, kernel in prunable(model).items()}
        mask = aim.drawn(scores)
        drawn = torch.cat([mask[name].flatten() for name in mask]).to(masks.device)
        order = [int(count + place) % self.window for place in range(self.window)]
        apart = (masks[order] != drawn).sum(dim=1).tolist()
        full = int(count) >= self.window
        masks[int(count) % self.window] = drawn
        count += 1
        distances = [places / (2 * mask.nnz) for places in apart]  # both keep as many, so differ twice by each
        if full and max(distances) < self.distance and stage.step < stage.steps:
            return Change(stop={"why": "early-bird", "distances": distances})
        return None
