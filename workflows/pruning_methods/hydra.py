"""Pruning by learned scores."""

from __future__ import annotations

from typing import Literal

from cluster.flow import Flow
from tasks.pruning.hydra import Hydra
from tasks.training.train import Train
from workflows.chain import Ticket
from workflows.pruning_methods import Contest, PruningMethod, Taxonomy


class HydraPruning(PruningMethod):
    """HYDRA: pretraining, scores learned with the robust loss, fine-tuning (Sehwag et al. 2020).

    Each of the three takes a third of the budget.
    """

    kind: Literal["hydra-pruning"] = "hydra-pruning"

    @property
    def taxonomy(self) -> Taxonomy:
        """After training."""
        return Taxonomy("after", "one-shot", "unstructured", "layerwise", "learned scores", "learning-rate-rewind")

    def check(self, contest: Contest) -> None:
        """Counts what each layer keeps."""
        self._scores(contest)
        self._tuned(contest)
        contest.check_prune(contest.prune(scope="uniform"))

    async def ticket(self, flow: Flow, contest: Contest) -> Ticket:
        """The weights that the scores chose, fine-tuned."""
        dense = flow.step(contest.training(contest.epochs // 3))
        scored = flow.step(self._scores(contest), trained=dense)
        train = self._tuned(contest)
        return Ticket(flow, 1, train, dense, scored, flow.step(train, start=dense, mask=scored))

    def _tuned(self, contest: Contest) -> Train:
        return contest.training(contest.epochs - 2 * (contest.epochs // 3), schedule_from="zero")

    def _scores(self, contest: Contest) -> Hydra:
        train = contest.training(contest.epochs // 3)
        shared = {name: value for name, value in dict(train).items() if name in Hydra.model_fields and name != "kind"}
        return Hydra(density=contest.density, **shared)
