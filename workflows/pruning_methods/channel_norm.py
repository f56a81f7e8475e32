"""Structured pruning: whole channels."""

from __future__ import annotations

from typing import Literal

from cluster.flow import Flow, Handle
from tasks.models.network import Network
from tasks.pruning.channels import PruneChannels
from tasks.pruning.compact import Compact
from tasks.training.train import Train
from workflows.chain import Ticket
from workflows.pruning_methods import Contest, PruningMethod, Taxonomy
from workflows.subjects import without_weights


class ChannelNorm(PruningMethod):
    """Removes the channels whose filters have the smallest norm, then retrains (Li et al. 2017).

    Half of the budget trains the dense network. Channels go until no more weights are left than the density allows, so
    the density is met to within one channel.
    """

    kind: Literal["channel-norm"] = "channel-norm"
    scope: Literal["global", "layerwise"] = "layerwise"
    """Over what channels compete."""
    norm: Literal["l1", "l2"] = "l1"
    """Of a filter."""

    @property
    def taxonomy(self) -> Taxonomy:
        """After training."""
        return Taxonomy("after", "one-shot", "channels", self.scope, f"{self.norm} norm", "learning-rate-rewind")

    def check(self, contest: Contest) -> None:
        """Asks the network whether it can shrink that far."""
        contest.training(contest.epochs // 2)
        self._retrained(contest)
        network = without_weights(contest.train.architecture, contest.train.data.signature())
        assert isinstance(network, Network)
        self._pruning(contest).check_network(network)

    async def ticket(self, flow: Flow, contest: Contest) -> Ticket:
        """The kept channels, retrained."""
        dense = flow.step(contest.training(contest.epochs // 2))
        mask = flow.step(self._pruning(contest), trained=dense)
        train = self._retrained(contest)
        return Ticket(flow, 1, train, dense, mask, flow.step(train, start=dense, mask=mask))

    def compacted(self, ticket: Ticket) -> Handle:
        """The network without the channels that went."""
        train = ticket.train
        compact = Compact(data=train.data, architecture=train.architecture, threads=train.threads, gpus=train.gpus)
        return ticket.flow.step(compact, trained=ticket.trained)

    def _retrained(self, contest: Contest) -> Train:
        return contest.training(contest.epochs - contest.epochs // 2, schedule_from="zero")

    def _pruning(self, contest: Contest) -> PruneChannels:
        return PruneChannels(
            data=contest.train.data,
            architecture=contest.train.architecture,
            scope=self.scope,
            norm=self.norm,
            density=contest.density,
            threads=contest.train.threads,
        )
