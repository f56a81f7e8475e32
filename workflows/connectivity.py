"""Instability analysis: whether networks that part at some step of their training stay linearly connected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self, cast

from pydantic import Field, model_validator

from cluster.flow import Flow, Handle
from cluster.runs import Finished
from tasks.analysis.alignment import Align, permutable
from tasks.analysis.interpolation import Interpolate, batch_norms
from tasks.analysis.matching import Matching
from tasks.analysis.matching.activation_matching import ActivationMatching
from tasks.component import require_rising
from tasks.models.network import Network
from tasks.seeds import seed_of
from tasks.training.train import Train
from workflows.chain import Chain, Ticket
from workflows.connectivity_report import report_on
from workflows.measured import seeded
from workflows.report import Report
from workflows.subjects import at_path, count_of, without_weights


class Connectivity(Chain):
    """Instability analysis along rewind steps, dense and of tickets (Frankle et al. 2020, arXiv 1912.05671).

    From the weights of each step two networks are trained on, in different orders of the data, and the line between
    them is looked at for a barrier. With `prune`, the same is done from these weights under the mask that iterative
    pruning finds with this rewind point. The control are two networks of other initial weights, under the same mask.

    With `matching`, networks of different replicates, each under its own mask, are compared before and after their
    channels are matched (Ainsworth et al. 2023).
    """

    kind: Literal["connectivity"] = "connectivity"
    train: Train
    """How a network is trained; its seeds count the replicates' from here."""
    rewind_steps: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0,), min_length=1)
    """The training steps at which two networks part, rising; 0 are the initial weights."""
    replicates: int = Field(default=1, ge=1)
    """Independent pairs: other initial weights, other data orders."""
    control: bool = True
    """Compare with two networks of different initial weights under the same mask."""
    matching: Matching | None = None
    """What the channels of different replicates are matched by; they are not compared unless given."""
    split: Literal["train", "validation", "test"] = "test"
    """What error is measured on."""
    weights: Literal["last", "best"] = "last"
    """Which network of each training: the last, or the best by validation."""
    points: int = Field(default=30, ge=3)
    """Points on a line, both ends included."""
    examples: int | None = Field(default=None, ge=1)
    """How many examples of the split, drawn evenly over its classes; all unless given."""
    recalibrate: int | None = Field(default=None, ge=2)
    """Take the statistics of batch norms anew at every point, from so many training examples."""

    @model_validator(mode="after")
    def _parts_at_rewind_steps(self) -> Self:
        require_rising("rewind_steps", self.rewind_steps)
        if self.rewind_step or self.retraining != "rewind":
            raise ValueError("networks part where they are rewound to: give rewind_steps, no rewind_step or retraining")
        if self.train.sparsifier is not None:
            raise ValueError("train.sparsifier: networks are compared under one mask or none; leave it out")
        if self.train.stop_at is not None:
            raise ValueError("train.stop_at: connectivity compares finished networks; leave it out")
        return self

    @model_validator(mode="after")
    def _has_strangers_to_match(self) -> Self:
        if self.matching is not None and self.replicates < 2:
            raise ValueError("matching compares the networks of different replicates: give replicates of 2 or more")
        return self

    def check(self) -> None:
        """Checks the chain at every rewind step, and what lines and matching need of the network and its data."""
        self.check_chain(self.train)
        for place, step in enumerate(self.rewind_steps):
            with at_path(f"rewind_steps.{place}"):
                self.rewound(step).check_chain(self.train)
                Train.model_validate({**dict(self.train), "stop_at": step or None})
        count_of(self.train.data, self.split, self.examples)
        network = without_weights(self.train.architecture, self.train.data.signature())
        with at_path("recalibrate"):
            if self.recalibrate is not None and not batch_norms(network):
                raise ValueError("the network has no batch norms; leave it out")
            count_of(self.train.data, "train", self.recalibrate)
        with at_path("matching"):
            if self.matching is not None:
                permutable(cast(Network, network), self.train.data)
            if isinstance(self.matching, ActivationMatching):
                count_of(self.train.data, "train", self.matching.examples)

    async def run(self, flow: Flow) -> None:
        """All lines, side by side."""
        measured: list[Handle] = []
        for step in self.rewind_steps:
            chains = []
            for replicate in range(self.replicates):
                here = flow.at(rewind_step=step, replicate=replicate)
                tickets = list(self.rewound(step).tickets(here, seeded(self.train, replicate)))
                chains.append([tickets[0], *tickets[1:][-1:]])  # dense, and the sparsest
                for ticket in chains[-1]:
                    measured += self.lines(ticket, step)
            if self.matching is not None:
                for one, other in pairwise(chains):
                    for first, second in zip(one, other, strict=True):
                        measured += self.matched(first, second, self.matching)
        await flow.together(*measured)

    def rewound(self, step: int) -> Self:
        """The chain that restarts every level from this step."""
        return self.model_copy(update={"rewind_step": step})

    def lines(self, ticket: Ticket, step: int) -> Iterator[Handle]:
        """From a network to one that parted from it at this step, and to one of other initial weights."""
        train, here = ticket.train, ticket.flow.at(pair="orders")
        other = train.model_copy(update={"seed": seed_of(train.seed, "other-order") % 2**31})
        twin = here.step(other, start=ticket.start, mask=ticket.mask)
        yield here.step(self.line(), first=ticket.trained, second=twin)
        if self.control:
            here = ticket.flow.at(pair="inits")
            stranger = other.model_copy(update={"init_seed": seed_of(train.init_seed, "other-init") % 2**31})
            start = here.step(stranger.model_copy(update={"stop_at": step})) if step else None
            yield here.step(
                self.line(), first=ticket.trained, second=here.step(stranger, start=start, mask=ticket.mask)
            )

    def matched(self, first: Ticket, second: Ticket, matching: Matching) -> Iterator[Handle]:
        """From a network of one replicate to that of the next, as it is and with its channels matched."""
        yield first.flow.at(pair="replicates").step(self.line(), first=first.trained, second=second.trained)
        here = first.flow.at(pair="aligned")
        align = Align(
            data=self.train.data,
            architecture=self.train.architecture,
            matching=matching,
            weights=self.weights,
            threads=self.train.threads,
            gpus=self.train.gpus,
        )
        aligned = here.step(align, first=first.trained, second=second.trained)
        yield here.step(self.line(), first=first.trained, second=aligned)

    def line(self) -> Interpolate:
        """How the line between two networks is measured."""
        return Interpolate(
            data=self.train.data,
            architecture=self.train.architecture,
            split=self.split,
            weights=self.weights,
            points=self.points,
            examples=self.examples,
            recalibrate=self.recalibrate,
            threads=self.train.threads,
            gpus=self.train.gpus,
        )

    def report(self, finished: Sequence[Finished]) -> Report:
        """Barriers over the step at which networks part, dense beside sparse."""
        return report_on(self, finished)
