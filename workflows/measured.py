"""What workflows that train networks measure of them, and the controls that they compare a ticket with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from cluster.flow import Flow, Handle
from cluster.runs import Finished
from tasks.attacks import Attack
from tasks.measuring.evaluate import Evaluate
from tasks.measuring.latency import MeasureLatency
from tasks.pruning.shuffle import ShuffleMask
from tasks.seeds import seed_of
from tasks.training.train import Train
from workflows import Workflow
from workflows.chain import Ticket
from workflows.subjects import at_path, count_of, require_no_transfer, without_weights

Control = Literal["reinit", "shuffled", "random"]

SHUFFLED: dict[str, Literal["layerwise", "global"]] = {"shuffled": "layerwise", "random": "global"}
"""Within what a control permutes a mask."""


class Measured(Workflow):
    """A workflow that measures every network that it trains."""

    train: Train
    """How a network is trained; its seeds count the replicates' from here."""
    weights: Literal["last", "best"] = "last"
    """Which network of each training is measured: the last, or the best by validation."""
    attacks: tuple[Attack, ...] = ()
    """What robust accuracy is measured with."""
    epsilons: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Budgets of the attacks, rising."""
    examples: int | None = Field(default=None, ge=1)
    """Examples of the split that are attacked; all when not given."""
    split: Literal["validation", "test"] = "test"
    """Validation to choose by, test to report."""
    latency: int | None = Field(default=None, ge=1)
    """Also measure how long the last networks take for an image, so many of them at once; not unless given."""
    controls: tuple[Control, ...] = ("reinit", "shuffled")
    """What a ticket is compared with: other initial weights under its mask, its mask shuffled within layers, or as many
    weights anywhere in the network (`random`)."""

    @model_validator(mode="after")
    def _has_no_surrogates(self) -> Self:
        require_no_transfer(self.attacks)
        return self

    @model_validator(mode="after")
    def _controls_differ(self) -> Self:
        if len(set(self.controls)) < len(self.controls):
            raise ValueError("controls: give each only once")
        return self

    def check_measurement(self) -> None:
        """Compares attacks with the network and examples with the data.

        Raises:
            ValueError: they do not fit.
        """
        count_of(self.train.data, self.split, self.examples)
        with at_path("train.architecture"):
            network = without_weights(self.train.architecture, self.train.data.signature())
        with at_path("attacks"):
            self.measurement(self.train)
            for attack in self.attacks:
                attack.check_model(network)

    def measurement(self, train: Train) -> Evaluate:
        """What is measured of a network that was trained like this."""
        return Evaluate(
            data=train.data,
            architecture=train.architecture,
            split=self.split,
            weights=self.weights,
            attacks=self.attacks,
            epsilons=self.epsilons,
            examples=self.examples,
            threads=train.threads,
            gpus=train.gpus,
        )

    def timed(self, flow: Flow, train: Train, trained: Handle) -> Iterator[Handle]:
        """How long a network takes, if that is asked for.

        Args:
            flow: its place.
            train: how it was trained.
            trained: the training.
        """
        if self.latency is not None:
            yield flow.step(MeasureLatency.beside(self.measurement(train), self.latency), trained=trained)

    def measured_controls(self, ticket: Ticket, scratch: Train, replicate: int) -> Iterator[Handle]:
        """The networks that tell whether it is the ticket, and not just its sparsity, that counts.

        Args:
            ticket: sparse.
            scratch: how a network of other initial weights is trained from its beginning.
            replicate: decides how masks are shuffled.
        """
        for control in self.controls:
            here, train, start, mask = ticket.flow.at(control=control), ticket.train, ticket.start, ticket.mask
            if control == "reinit":
                start, train = None, scratch.model_copy(update={"init_seed": _seed(scratch.init_seed, "reinit")})
            else:
                start, scope = ticket.dense or start, SHUFFLED[control]
                mask = here.step(ShuffleMask(seed=_seed(replicate, "shuffle"), scope=scope), mask=mask)
            trained = here.step(train, start=start, mask=mask, teacher=ticket.teacher)
            yield here.step(self.measurement(train), trained=trained)

    def accuracies(self, evaluation: Finished) -> dict[str, float]:
        """Clean accuracy, and that under attack, by what a table calls them."""
        robust = {f"ε={entry['epsilon']:g}": entry["accuracy"] for entry in evaluation.metrics["robust"]}
        return {"clean": evaluation.metrics["clean"]["accuracy"], **robust}


def seeded(train: Train, replicate: int) -> Train:
    """The training of one replicate."""
    return train.model_copy(update={"seed": train.seed + replicate, "init_seed": train.init_seed + replicate})


def _seed(*purpose: int | str) -> int:
    return seed_of(*purpose) % 2**31


def current(finished: Sequence[Finished]) -> Iterator[Finished]:
    """The first step of each kind at each place: those after it were named by an earlier version of the code.

    Only of kinds that a workflow asks for once at a place.
    """
    seen = set[tuple[Any, ...]]()
    for step in finished:
        place = (step.kind, *sorted(step.at.items()))
        if place not in seen:
            seen.add(place)
            yield step


def evaluations(finished: Sequence[Finished]) -> Iterator[tuple[Finished, Finished]]:
    """Every evaluation, with the training of the network that it measured."""
    trained = {step.step.key: step for step in finished if step.kind == "train"}
    for step in current(finished):
        if step.kind == "evaluate":
            source = trained.get(step.step.manifest["inputs"]["trained"])
            if source is not None:
                yield step, source


def spread(values: Sequence[float]) -> str:
    """In percent: the mean of shares, and half the distance between their extremes."""
    if not values:
        return ""
    percent = [100 * value for value in values]
    return f"{mean(percent):.1f}" + (f"±{(max(percent) - min(percent)) / 2:.1f}" if len(percent) > 1 else "")


def cost_of(finished: Sequence[Finished]) -> int:
    """Sample-steps of these steps together."""
    return sum(step.metrics.get("sample_steps", 0) for step in finished)


def cost_note(finished: Sequence[Finished], replicates: int) -> str:
    """What a table needs said of its figures and their price."""
    ranges = "± half the range over replicates; " if replicates > 1 else ""
    return f"{ranges}{cost_of(finished):,} sample-steps of training"


def notes_on(finished: Sequence[Finished], replicates: int) -> list[str]:
    """The same, and every warning of an evaluation."""
    warnings: set[Any] = {warning for step in finished for warning in step.metrics.get("warnings", [])}
    return [cost_note(finished, replicates), *sorted(warnings)]
