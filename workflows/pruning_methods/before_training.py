"""Pruning at initialisation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from cluster.flow import Flow
from tasks.component import kind_of
from tasks.pruning import Saliency
from tasks.pruning.magnitude import Magnitude
from tasks.training.train import Train
from workflows.chain import Ticket
from workflows.pruning_methods import Contest, PruningMethod, Taxonomy


class BeforeTraining(PruningMethod):
    """Prunes the initial weights and trains what is left (Lee et al. 2019 with snip; Frankle et al. 2021 compare)."""

    kind: Literal["before-training"] = "before-training"
    saliency: Saliency = Magnitude()
    """What ranks the initial weights."""
    scope: Literal["global", "layerwise", "uniform", "erk"] = "global"
    """Over what they compete."""
    output_layer: Literal["include", "exclude"] = "include"
    """Prune the output layer like any other, or spare it."""
    rounds: int | None = Field(default=None, ge=1)
    """Score anew so many times; as the saliency does unless given."""

    @property
    def taxonomy(self) -> Taxonomy:
        """Before training."""
        return Taxonomy("before", "one-shot", "unstructured", self.scope, kind_of(type(self.saliency)), "from scratch")

    def check(self, contest: Contest) -> None:
        """Counts what each layer keeps."""
        self._train(contest)
        contest.check_prune(contest.prune(**self._pruning()))

    async def ticket(self, flow: Flow, contest: Contest) -> Ticket:
        """The network, trained under its mask."""
        initial = flow.step(contest.training(contest.epochs, stop_at=0))
        mask = flow.step(contest.prune(**self._pruning()), trained=initial)
        train = self._train(contest)
        return Ticket(flow, 1, train, None, mask, flow.step(train, mask=mask))

    def _train(self, contest: Contest) -> Train:
        """For what scoring leaves of the budget."""
        scoring = contest.scoring(contest.prune(**self._pruning()))
        return contest.training(contest.epochs_left(scoring, contest.train.objective))

    def _pruning(self) -> dict[str, Any]:
        fields = ("saliency", "scope", "output_layer", "rounds")
        return {name: getattr(self, name) for name in fields}
