"""Pruning after training towards sparsity with multipliers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from cluster.flow import Flow
from tasks.pruning.sparsifiers.admm import ADMM
from tasks.training.train import Train
from workflows.chain import Ticket
from workflows.pruning_methods import Contest, PruningMethod, Taxonomy


class ADMMPruning(PruningMethod):
    """ADMM pruning (Zhang et al. 2018), robust under adversarial training (Ye et al. 2019).

    Half of the budget trains with weights drawn to a sparse set, half retrains the weights that are kept.
    """

    kind: Literal["admm-pruning"] = "admm-pruning"
    scope: Literal["global", "layerwise", "uniform", "erk"] = "layerwise"
    """Over what weights compete."""
    rho: float = Field(default=1e-3, gt=0)
    """Strength of the pull at first."""
    growth: float = Field(default=1.3, ge=1)
    """What it is multiplied by at every update."""

    @property
    def taxonomy(self) -> Taxonomy:
        """After training that prepares for it."""
        return Taxonomy("after", "one-shot", "unstructured", self.scope, "magnitude by ADMM", "learning-rate-rewind")

    def check(self, contest: Contest) -> None:
        """Counts what each layer keeps."""
        self._prepared(contest)
        self._retrained(contest)
        contest.check_prune(contest.prune(scope=self.scope))

    async def ticket(self, flow: Flow, contest: Contest) -> Ticket:
        """The kept weights, retrained."""
        prepared = flow.step(self._prepared(contest))
        mask = flow.step(contest.prune(scope=self.scope), trained=prepared)
        train = self._retrained(contest)
        return Ticket(flow, 1, train, prepared, mask, flow.step(train, start=prepared, mask=mask))

    def _retrained(self, contest: Contest) -> Train:
        return contest.training(contest.epochs - contest.epochs // 2, schedule_from="zero")

    def _prepared(self, contest: Contest) -> Train:
        fields: dict[str, Any] = {"scope": self.scope, "rho": self.rho, "growth": self.growth}
        return contest.training(contest.epochs // 2, sparsifier=ADMM(density=contest.density, **fields))
