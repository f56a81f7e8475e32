"""Pruning little by little during one training."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from cluster.flow import Flow
from tasks.pruning.sparsifiers.gradual import Gradual
from tasks.training.train import Train
from workflows.chain import Ticket
from workflows.pruning_methods import Contest, PruningMethod, Taxonomy


class GradualPruning(PruningMethod):
    """Gradual magnitude pruning along a cubic schedule (Zhu & Gupta 2018)."""

    kind: Literal["gradual-pruning"] = "gradual-pruning"
    begin: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training before the first pruning."""
    end: float = Field(default=0.75, gt=0, le=1)
    """Share of the training after which the mask stays as it is."""
    prunings: int = Field(default=30, ge=2)
    """How often it prunes in between, at least every step."""
    scope: Literal["global", "layerwise", "uniform", "erk"] = "global"
    """Over what weights compete."""

    @property
    def taxonomy(self) -> Taxonomy:
        """During training."""
        return Taxonomy("during", "iterative", "unstructured", self.scope, "magnitude", "goes on")

    def check(self, contest: Contest) -> None:
        """Counts what each layer keeps in the end."""
        self._train(contest)
        contest.check_prune(contest.prune(scope=self.scope))

    async def ticket(self, flow: Flow, contest: Contest) -> Ticket:
        """The one training, for the whole budget."""
        trained = flow.step(self._train(contest))
        return Ticket(flow, 1, contest.training(contest.epochs), None, trained, trained)

    def _train(self, contest: Contest) -> Train:
        steps = contest.epochs * math.ceil(len(contest.examples) / contest.train.batch_size)
        every = max(int((self.end - self.begin) * steps / self.prunings), 1)
        sparsifier = Gradual(density=contest.density, begin=self.begin, end=self.end, every=every, scope=self.scope)
        return contest.training(contest.epochs, sparsifier=sparsifier)
