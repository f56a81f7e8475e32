"""Tickets that show early in training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cluster.flow import Flow
from tasks.objectives import Objective
from tasks.pruning.sparsifiers.early_bird import EarlyBird
from tasks.training.train import Train
from workflows.chain import Ticket
from workflows.pruning_methods import Contest, PruningMethod, Taxonomy
from workflows.subjects import require_no_teacher


class EarlyBirdPruning(PruningMethod):
    """Early-bird tickets (You et al. 2020), robust ones under adversarial training (Xi et al. 2022).

    Training stops when the magnitude mask no longer changes, the weights are rewound to the initial ones, and what is
    left of the budget trains the ticket. If the mask never settles, half of the budget has gone into the search.
    """

    kind: Literal["early-bird-pruning"] = "early-bird-pruning"
    objective: Objective | None = None
    """What the search trains with, say `standard` for a cheap one; what the ticket is trained with unless given."""
    window: int = Field(default=5, ge=1)
    """Earlier masks that the latest is compared with."""
    every: float = Field(default=0.25, gt=0)
    """Epochs between two masks."""
    distance: float = Field(default=0.25, gt=0, lt=1)
    """Share of its weights that the latest mask may keep and another of them not."""

    @property
    def taxonomy(self) -> Taxonomy:
        """Early in training."""
        return Taxonomy("during", "one-shot", "unstructured", "global", "magnitude", "rewind")

    def check(self, contest: Contest) -> None:
        """Counts what each layer keeps, and compares the longest search with the budget."""
        search = self._search(contest)
        if self.objective == contest.train.objective:
            raise ValueError("objective: that is what the ticket is trained with anyway; leave it out")
        require_no_teacher(search)
        if (self.window + 1) * self.every >= search.epochs:
            raise ValueError(
                f"window: {self.window} masks and one more, {self.every:g} epochs apart, are not there before the "
                f"{search.epochs} epochs of the search are over; compare fewer, or draw them more often"
            )
        contest.training(contest.epochs_left(contest.cost(search.epochs, search.objective), contest.train.objective))
        contest.check_prune(contest.prune())

    async def ticket(self, flow: Flow, contest: Contest) -> Ticket:
        """The ticket, trained from the initial weights for what the search has left."""
        search = flow.step(self._search(contest))
        mask = flow.step(contest.prune(), trained=search)
        spent = (await search)["sample_steps"]
        train = contest.training(contest.epochs_left(spent, contest.train.objective))
        return Ticket(flow, 1, train, None, mask, flow.step(train, mask=mask))

    def _search(self, contest: Contest) -> Train:
        sparsifier = EarlyBird(density=contest.density, window=self.window, every=self.every, distance=self.distance)
        objective = {"objective": self.objective} if self.objective else {}
        return contest.training(contest.epochs // 2, sparsifier=sparsifier, **objective)
