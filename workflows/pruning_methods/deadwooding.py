"""Pruning by Lagrangian duality, then learning from the dense network."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cluster.flow import Flow
from tasks.objectives.distilled import Distilled
from tasks.pruning.sparsifiers.lagrangian_dual import LagrangianDual
from tasks.training.train import Train
from workflows.chain import Ticket
from workflows.pruning_methods import Contest, PruningMethod, Taxonomy


class Deadwooding(PruningMethod):
    """Lagrangian-dual pruning, retraining by distillation (Kaur et al. 2022, arXiv 2202.05226; a reconstruction).

    A third of the budget trains the dense network, which is the teacher; a third goes on from there under the
    constraint that what is to be pruned has no mass; the rest retrains, with the teacher's answers beside the labels.
    """

    kind: Literal["deadwooding"] = "deadwooding"
    rate: float = Field(default=0.1, gt=0)
    """How fast the multiplier grows with the violation."""
    alpha: float = Field(default=0.5, gt=0, le=1)
    """Weight of the teacher against the labels."""
    temperature: float = Field(default=1.0, gt=0)
    """What logits are divided by for the teacher's part."""

    @property
    def taxonomy(self) -> Taxonomy:
        """After training that prepares for it."""
        return Taxonomy("after", "one-shot", "unstructured", "global", "magnitude by duality", "distillation")

    def check(self, contest: Contest) -> None:
        """Counts what each layer keeps, and builds the objective of the retraining."""
        self._prepared(contest)
        self._retrained(contest)
        contest.check_prune(contest.prune())

    async def ticket(self, flow: Flow, contest: Contest) -> Ticket:
        """The kept weights, retrained under the teacher."""
        teacher = flow.step(contest.training(contest.epochs // 3))
        prepared = flow.step(self._prepared(contest), start=teacher)
        mask = flow.step(contest.prune(), trained=prepared)
        train = self._retrained(contest)
        trained = flow.step(train, start=prepared, mask=mask, teacher=teacher)
        return Ticket(flow, 1, train, prepared, mask, trained, teacher)

    def _prepared(self, contest: Contest) -> Train:
        sparsifier = LagrangianDual(density=contest.density, rate=self.rate)
        return contest.training(contest.epochs // 3, sparsifier=sparsifier, schedule_from="zero")

    def _retrained(self, contest: Contest) -> Train:
        objective = Distilled(objective=contest.train.objective, alpha=self.alpha, temperature=self.temperature)
        spent = contest.cost(2 * (contest.epochs // 3), contest.train.objective)
        return contest.training(contest.epochs_left(spent, objective), objective=objective, schedule_from="zero")
