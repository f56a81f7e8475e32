"""Iterative magnitude pruning with rewinding, its retraining variants and its controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from cluster.flow import Flow, Handle
from cluster.runs import Finished
from tasks.attacks import Attack
from tasks.component import kind_of
from tasks.measuring.evaluate import Evaluate
from tasks.pruning.prune import Prune
from tasks.pruning.shuffle import ShuffleMask
from tasks.seeds import seed_of
from tasks.training.train import Train
from workflows.chain import Chain, Ticket
from workflows.report import Curve, Report
from workflows.subjects import at_path, count_of, require_no_transfer, without_weights

Control = Literal["reinit", "shuffled"]


class IMP(Chain):
    """Iterative magnitude pruning with rewinding (Frankle & Carbin 2019, Alg. 2; Frankle et al. 2020, Alg. 2)."""

    kind: Literal["imp"] = "imp"
    train: Train
    """How a network is trained at every level; its seeds count the replicates' from here."""
    prune: Prune
    """What one level removes."""
    replicates: int = Field(default=1, ge=1)
    """Independent chains: other initial weights, other data orders."""
    controls: tuple[Control, ...] = ("reinit", "shuffled")
    """What each ticket is compared with: other initial weights, or its mask shuffled within layers."""
    control_every: int = Field(default=1, ge=1)
    """Controls are trained at every so many levels, counted back from the last."""
    weights: Literal["last", "best"] = "last"
    """Which network of each training is measured: the last, or the best by validation."""
    attacks: tuple[Attack, ...] = ()
    """What robust accuracy is measured with."""
    epsilons: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Budgets of the attacks, rising."""
    examples: int | None = Field(default=None, ge=1)
    """Test examples that are attacked; all when not given."""

    @model_validator(mode="after")
    def _has_no_surrogates(self) -> Self:
        require_no_transfer(self.attacks)
        return self

    def check(self) -> None:
        """Checks the chain, and compares attacks with the network and examples with the data."""
        self.check_chain(self.train)
        count_of(self.train.data, "test", self.examples)
        with at_path("attacks"):
            self.measurement()
            network = without_weights(self.train.architecture, self.train.data.signature())
            for attack in self.attacks:
                attack.check_model(network)

    def measurement(self) -> Evaluate:
        """What is measured of every network."""
        return Evaluate(
            data=self.train.data,
            architecture=self.train.architecture,
            split="test",
            weights=self.weights,
            attacks=self.attacks,
            epsilons=self.epsilons,
            examples=self.examples,
            threads=self.train.threads,
            gpus=self.train.gpus,
        )

    def seeded(self, replicate: int) -> Train:
        """The training of one replicate."""
        seeds = {"seed": self.train.seed + replicate, "init_seed": self.train.init_seed + replicate}
        return self.train.model_copy(update=seeds)

    async def run(self, flow: Flow) -> None:
        """The chains, side by side."""
        await flow.together(*(self.chain(flow.at(replicate=index), index) for index in range(self.replicates)))

    async def chain(self, flow: Flow, replicate: int) -> None:
        """One replicate: its tickets, each beside its controls."""
        train, measured = self.seeded(replicate), []
        depth = len(list(self.densities(train)))
        for ticket in self.tickets(flow, train):
            measured.append(ticket.flow.step(self.measurement(), trained=ticket.trained))
            if ticket.mask is not None and (depth - ticket.level) % self.control_every == 0:
                measured += self.measured_controls(ticket, ticket.mask, replicate)
        await flow.together(*measured)

    def measured_controls(self, ticket: Ticket, mask: Handle, replicate: int) -> Iterator[Handle]:
        """The networks that tell whether it is the ticket, and not just its sparsity, that counts."""
        for control in self.controls:
            here = ticket.flow.at(control=control)
            if control == "reinit":
                trained = here.step(_reinitialised(self.seeded(replicate)), mask=mask)
            else:
                shuffled = here.step(ShuffleMask(seed=seed_of(replicate, "shuffle") % 2**31), mask=mask)
                trained = here.step(ticket.train, start=ticket.start, mask=shuffled)
            yield here.step(self.measurement(), trained=trained)

    def report(self, finished: Sequence[Finished]) -> Report:
        """Accuracy and robust accuracy over density, tickets beside their controls."""
        results = [_point(step, density) for step, density in _measured(finished)]
        arms = ["ticket", *self.controls]
        names = ["clean", *(f"ε={epsilon:g}" for epsilon in self.epsilons)]
        shown = [names[0], *names[1:][-1:]]  # a terminal has room for one budget; the figure has them all
        densities = sorted({point["density"] for point in results}, reverse=True)
        lines = dict(zip(arms, ("-", "--", ":"), strict=False))
        network, data = kind_of(type(self.train.architecture)), kind_of(type(self.train.data))
        return Report(
            title=f"Iterative magnitude pruning, {network} on {data}",
            columns=["kept %", *(f"{arm} {name}" for arm in arms for name in shown)],
            rows=[
                [f"{100 * density:.1f}", *(_spread(results, arm, density, name) for arm in arms for name in shown)]
                for density in densities
            ],
            results=results,
            notes=_notes(finished, self.replicates),
            curves=[
                Curve(
                    f"{arm}, {name}",
                    [(100 * point["density"], 100 * point[name]) for point in results if point["arm"] == arm],
                    {"linestyle": lines[arm], "color": f"C{index}"},
                )
                for index, name in enumerate(names)
                for arm in arms
            ],
            x_label="weights kept, %",
            y_label="test accuracy, %",
        )


def _reinitialised(train: Train) -> Train:
    other = seed_of(train.init_seed, "reinit") % 2**31
    return train.model_copy(update={"init_seed": other})


def _measured(finished: Sequence[Finished]) -> Iterator[tuple[Finished, float]]:
    """Every evaluation, with the density of the network that it measured."""
    trained = {step.step.key: step for step in finished if step.kind == "train"}
    for step in finished:
        if step.kind == "evaluate":
            source = trained.get(step.step.manifest["inputs"]["trained"])
            if source is not None:
                yield step, source.metrics["density"]


def _point(step: Finished, density: float) -> dict[str, Any]:
    metrics = step.metrics
    robust = {f"ε={entry['epsilon']:g}": entry["accuracy"] for entry in metrics["robust"]}
    return {
        "arm": step.at.get("control", "ticket"),
        "replicate": step.at["replicate"],
        "level": step.at["level"],
        "density": density,
        "clean": metrics["clean"]["accuracy"],
        **robust,
        "step": step.step.key,
    }


def _spread(results: Sequence[dict[str, Any]], arm: str, density: float, name: str) -> str:
    """Mean over replicates, and half the distance between the extremes."""
    values = [100 * point[name] for point in results if point["arm"] == arm and point["density"] == density]
    if not values:
        return ""
    return f"{mean(values):.1f}" + (f"±{(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else "")


def _notes(finished: Sequence[Finished], replicates: int) -> list[str]:
    cost = sum(step.metrics.get("sample_steps", 0) for step in finished)
    warnings = {warning for step in finished for warning in step.metrics.get("warnings", [])}
    spread = "± half the range over replicates; " if replicates > 1 else ""
    return [f"{spread}{cost:,} sample-steps of training", *sorted(warnings)]
