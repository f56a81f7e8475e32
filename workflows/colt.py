"""Cyclic overlapping lottery tickets: the parts of a data set prune one network together."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from cluster.flow import Flow, Handle
from cluster.runs import Finished
from tasks.component import members
from tasks.data import Dataset, Signature
from tasks.data.partitions import Partition
from tasks.models.prunable import output_layer
from tasks.pruning.intersect import IntersectMasks
from tasks.pruning.prune import Prune
from tasks.seeds import seed_of
from tasks.training.fresh_head import FreshHead, body_of, require_same_body
from tasks.training.train import Train
from workflows.chain import Ticket
from workflows.colt_report import report_on
from workflows.figures import Figures, Measurement, figures_of, names_of
from workflows.imp import IMP
from workflows.measured import Measured, evaluations, seeded
from workflows.report import Report
from workflows.subjects import at_path, count_of, without_weights

Strategy = Literal["class-ranges", "iid", "stratified"]


class Colt(Measured):
    """COLT: networks that learn parts of the data keep what all of them keep (Hossain et al. 2022, arXiv 2212.12770).

    Everything begins at one file of initial weights: the networks of the parts, the tickets and the chain beside them
    have its body, and output layers drawn anew for their classes. The ticket of a mask is the network for all of the
    data; its share of pruned weights is what `sparsity` means.
    """

    kind: Literal["colt"] = "colt"
    parts: int = Field(default=2, ge=2)
    """Parts of the data, each with a network of its own."""
    partitions: tuple[Strategy, ...] = ("iid", "class-ranges")
    """Ways to divide the data, side by side: by classes as published, or at random."""
    prune: Prune = Prune(fraction=0.15, output_layer="exclude")
    """What a round removes from each network; from all of them together it is more."""
    sparsity: float = Field(gt=0, lt=1)
    """Prune until at least this share of the ticket's prunable weights is gone, its output layer's included."""
    replicates: int = Field(default=1, ge=1)
    """Independent repetitions: other initial weights, other data orders."""
    transfer: tuple[Dataset, ...] = ()
    """Other data that the tickets are trained on too."""
    beside_imp: bool = True
    """Also prune the network for all of the data, from the same initial weights and as sparse."""

    @model_validator(mode="after")
    def _partitions_differ(self) -> Self:
        if not self.partitions or len(set(self.partitions)) < len(self.partitions):
            raise ValueError("partitions: give at least one, and each only once")
        return self

    @model_validator(mode="after")
    def _prunes_bodies_by_shares(self) -> Self:
        if self.prune.fraction is None:
            raise ValueError("prune.density: a round removes a share of what the last one left; give prune.fraction")
        if self.prune.output_layer != "exclude":
            raise ValueError(
                f"prune.output_layer: {self.prune.output_layer} (output layers are drawn anew and never pruned; "
                "allowed: exclude)"
            )
        if self.prune.scope not in ("global", "layerwise"):
            raise ValueError(
                f"prune.scope: {self.prune.scope} (what several networks keep has no densities that are set "
                "beforehand; allowed: global, layerwise)"
            )
        return self

    @model_validator(mode="after")
    def _trains_from_beginning_to_end(self) -> Self:
        for name in ("stop_at", "rewind_optimizer"):
            if getattr(self.train, name) not in (None, False):
                raise ValueError(
                    f"train.{name}: every training goes from the shared initial weights to its end; leave it out"
                )
        if self.train.sparsifier is not None and self.train.sparsifier.prunes:
            raise ValueError("train.sparsifier: it prunes each network by itself; leave it out")
        if self.train.data.partition is not None:
            raise ValueError("train.data.partition: the data are divided by `partitions`; leave it out")
        return self

    @property
    def imp(self) -> IMP:
        """The chain on all of the data, to the same sparsity."""
        return IMP(train=self.train, prune=self.prune, sparsity=self.sparsity)

    def check(self) -> None:
        """Checks sparsity, parts and other data, and compares attacks with the network and examples with the data."""
        self.imp.check_chain(self.train)
        self.check_measurement()
        for strategy in self.partitions:
            self._check_parts(strategy)
        for place, data in enumerate(self.transfer):
            with at_path(f"transfer.{place}"):
                self._check_transfer(data)

    def _check_parts(self, strategy: Strategy) -> None:
        classes = self.train.data.whole().classes
        with at_path("parts"):
            parts = self.trainings(self.train, strategy)
            if len({part.data.signature().classes for part in parts}) > 1:
                allowed = ", ".join(str(count) for count in range(2, classes + 1) if classes % count == 0)
                raise ValueError(
                    f"{self.parts} class ranges of {classes} classes need output layers of different sizes, and the "
                    f"networks have one start; allowed: {allowed}"
                )
            if parts[0].data.signature().classes < 2:
                raise ValueError(
                    f"{self.parts} class ranges of {classes} classes leave one class to each, and nothing to learn; "
                    f"allowed: up to {classes // 2}"
                )
        for part in parts:
            with at_path(f"partitions: {strategy}"):
                self.prune.saliency.check(part.data.load("train"))
                part.data.load("validation")

    def _check_transfer(self, data: Dataset) -> None:
        here, there = self.train.data.signature(), data.signature()
        own = without_weights(self.train.architecture, here)
        other = without_weights(self.train.architecture, there)
        bodies = [body_of(network.state_dict(), output_layer(network)) for network in (own, other)]
        try:
            require_same_body(*bodies)
        except ValueError as misfit:
            raise ValueError(f"images of {_shape(there)} need another network than {_shape(here)}: {misfit}") from None
        if data == self.train.data:
            raise ValueError("these are the data that the tickets are found on; leave them out")
        data.load("train")
        data.load("validation")
        count_of(data, self.split, self.examples)
        for attack in self.attacks:
            attack.check_model(other)

    async def run(self, flow: Flow) -> None:
        """The replicates, side by side."""
        await flow.together(*(self.replicate(flow.at(replicate=index), index) for index in range(self.replicates)))

    async def replicate(self, flow: Flow, replicate: int) -> None:
        """From one file of initial weights: the dense network, COLT on each partition, and the chain beside them."""
        train = seeded(self.train, replicate)
        initial = flow.step(initial_weights(train))
        start = flow.step(self.ready(train, train.data), start=initial)

        async def measured(arm: str, search: Awaitable[Handle | None]) -> None:
            mask = await search
            await flow.together(*self.tickets(flow.at(arm=arm), train, initial, start, mask, replicate))

        dense = self.tickets(flow.at(arm="dense"), train, initial, start, None, replicate)
        searches = [
            measured(strategy, self.rounds(flow.at(arm=strategy), strategy, train, initial))
            for strategy in self.partitions
        ]
        if self.beside_imp:
            searches.append(measured("imp", self.chain(flow.at(arm="imp"), train, start)))
        await flow.together(*dense, *searches)

    async def rounds(self, flow: Flow, strategy: Strategy, train: Train, initial: Handle) -> Handle:
        """The rounds: train on every part, prune every network, keep what all keep, and rewind; yields the mask."""
        parts = self.trainings(train, strategy)
        start = flow.step(self.ready(train, parts[0].data, train.init_seed), start=initial)
        ticket, density, done = start, 1.0, 0
        mask: Handle | None = None
        while density > 1 - self.sparsity:
            here, pruned = flow.at(round=done), {}
            for index, part in enumerate(parts):
                own = here.at(part=index)
                trained = own.step(part, start=start, mask=mask)
                pruning = self.prune.beside(part.data, part.architecture, part.seed)
                pruned[f"part{index}"] = own.step(pruning, trained=trained, mask=mask)
            mask = here.step(IntersectMasks(spared=(self.output,)), before=mask, **pruned)
            ticket = here.step(self.ready(train, train.data), start=initial, mask=mask)
            density, done = (await ticket)["density"], done + 1
        return ticket

    async def chain(self, flow: Flow, train: Train, start: Handle) -> Handle | None:
        """Magnitude pruning of the network for all of the data; yields its last mask."""
        *_, last = self.imp.tickets(flow, train, start)
        return last.mask

    def tickets(
        self, flow: Flow, train: Train, initial: Handle, start: Handle, mask: Handle | None, replicate: int
    ) -> Iterator[Handle]:
        """What is measured of a mask: its ticket and the controls on all of the data, and the ticket on other data."""
        ticket = Ticket(flow, 1, train, start, mask, flow.step(train, start=start, mask=mask))
        yield flow.step(self.measurement(train), trained=ticket.trained)
        if mask is not None:
            yield from self.timed(flow, train, ticket.trained)
            yield from self.measured_controls(ticket, train, replicate)
        for place, data in enumerate(self.transfer):
            here, there = flow.at(transfer=place), train.model_copy(update={"data": data})
            head = here.step(self.ready(train, data), start=initial, mask=mask)
            trained = here.step(there, start=head, mask=head if mask is not None else None)
            yield here.step(self.measurement(there), trained=trained)

    def trainings(self, train: Train, strategy: Strategy) -> list[Train]:
        """How the network of each part is trained, with an order of its data of its own.

        Raises:
            ValueError: there are fewer classes than parts.
        """
        partition = members(Partition)[strategy]
        return [
            train.model_copy(
                update={
                    "data": train.data.model_copy(update={"partition": partition(parts=self.parts, index=index)}),
                    "seed": seed_of(train.seed, "part", index) % 2**31,
                }
            )
            for index in range(self.parts)
        ]

    def ready(self, train: Train, data: Dataset, init_seed: int | None = None) -> FreshHead:
        """The initial network made ready for these data; tickets on all data have one and the same output layer."""
        return FreshHead(
            data=data,
            architecture=train.architecture,
            initialiser=train.initialiser,
            init_seed=seed_of(train.init_seed, "head") % 2**31 if init_seed is None else init_seed,
        )

    @property
    def output(self) -> str:
        """The kernel that is never pruned."""
        return output_layer(without_weights(self.train.architecture, self.train.data.signature()))

    def figure_names(self) -> tuple[str, ...]:
        """Those of a ticket beside the dense network."""
        return names_of(self.epsilons, drops=True, latency=self.latency is not None)

    def figures(self, finished: Sequence[Finished]) -> Figures:
        """Those of the tickets of the first of `partitions`, beside the dense network."""
        arms: dict[str, list[Measurement]] = {}
        for evaluation, trained in evaluations(finished):
            if not {"control", "transfer"} & evaluation.at.keys():
                arms.setdefault(evaluation.at["arm"], []).append(Measurement(evaluation, trained))
        return figures_of(arms[self.partitions[0]], finished, dense=arms["dense"])

    def report(self, finished: Sequence[Finished]) -> Report:
        """Accuracy and rounds of every way to find a ticket, and how far the parts agreed."""
        return report_on(self, finished)


def initial_weights(train: Train) -> Train:
    """Yields the initial weights; they depend on nothing else of the training."""
    return Train(
        data=train.data,
        architecture=train.architecture,
        initialiser=train.initialiser,
        init_seed=train.init_seed,
        optimizer=train.optimizer,
        epochs=1,
        stop_at=0,
        threads=train.threads,
        gpus=train.gpus,
    )


def _shape(data: Signature) -> str:
    return f"{data.channels}x{data.height}x{data.width}"
