"""Pruning of trained weights, once or again and again."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from cluster.flow import Flow
from tasks.component import kind_of
from tasks.pruning import Saliency
from tasks.pruning.magnitude import Magnitude
from tasks.pruning.prune import Prune
from workflows.chain import Ticket
from workflows.imp import IMP
from workflows.pruning_methods import Contest, PruningMethod, Taxonomy


class AfterTraining(PruningMethod):
    """Trains, prunes, retrains, `levels` times (Han et al. 2015; IMP: Frankle & Carbin 2019; LRR: Renda et al. 2020).

    One level is one-shot pruning. What scores leave of the budget is divided evenly among the dense training and those
    of the levels; epochs that are left over go to the last.
    """

    kind: Literal["after-training"] = "after-training"
    saliency: Saliency = Magnitude()
    """What ranks the trained weights."""
    scope: Literal["global", "layerwise", "uniform", "erk"] = "global"
    """Over what they compete."""
    output_layer: Literal["include", "exclude"] = "include"
    """Prune the output layer like any other, or spare it."""
    levels: int = Field(default=1, ge=1)
    """Prunings on the way to the density, each leaving the same share."""
    retraining: Literal["rewind", "learning-rate-rewind", "fine-tune"] = "learning-rate-rewind"
    """After each: restart from the rewind point; keep the weights and restart the schedule; or keep them and go on at a
    small learning rate."""
    rewind_step: int = Field(default=0, ge=0)
    """The training step whose weights `rewind` restarts from; 0 are the initial weights."""
    fine_tune_rate: float | None = Field(default=None, gt=0)
    """The constant learning rate of `fine-tune`."""

    @model_validator(mode="after")
    def _says_how_to_fine_tune(self) -> Self:
        if (self.retraining == "fine-tune") != (self.fine_tune_rate is not None):
            raise ValueError("retraining: fine-tune and fine_tune_rate go together")
        return self

    @property
    def taxonomy(self) -> Taxonomy:
        """After training."""
        steps = "one-shot" if self.levels == 1 else "iterative"
        return Taxonomy("after", steps, "unstructured", self.scope, kind_of(type(self.saliency)), self.retraining)

    def check(self, contest: Contest) -> None:
        """Checks the chain."""
        chain = self._chain(contest)
        chain.check_chain(chain.train)

    async def ticket(self, flow: Flow, contest: Contest) -> Ticket:
        """The last of the chain."""
        chain = self._chain(contest)
        extra = self._epochs(contest) % (self.levels + 1)
        return list(chain.tickets(flow, chain.train, extra_epochs=extra))[-1]

    def _prune(self, contest: Contest) -> Prune:
        return contest.prune(saliency=self.saliency, scope=self.scope, output_layer=self.output_layer)

    def _epochs(self, contest: Contest) -> int:
        """What scores leave of the budget."""
        return contest.epochs_left(self.levels * contest.scoring(self._prune(contest)), contest.train.objective)

    def _chain(self, contest: Contest) -> IMP:
        prune, epochs = self._prune(contest), self._epochs(contest) // (self.levels + 1)
        return IMP(
            train=contest.training(epochs),
            prune=prune,
            levels=self.levels,
            rewind_step=self.rewind_step,
            retraining=self.retraining,
            fine_tune_epochs=epochs if self.retraining == "fine-tune" else None,
            fine_tune_rate=self.fine_tune_rate,
        )
