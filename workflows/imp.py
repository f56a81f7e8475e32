"""Iterative magnitude pruning with rewinding, its retraining variants and its controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from cluster.flow import Flow, Handle
from cluster.runs import Finished
from tasks.component import kind_of
from tasks.pruning.prune import Prune
from workflows.chain import Chain, Ticket
from workflows.measured import Control, Measured, controlled, evaluations, notes_on, spread
from workflows.report import Curve, Report


class IMP(Measured, Chain):
    """Iterative magnitude pruning with rewinding (Frankle & Carbin 2019, Alg. 2; Frankle et al. 2020, Alg. 2)."""

    kind: Literal["imp"] = "imp"
    prune: Prune
    """What one level removes."""
    replicates: int = Field(default=1, ge=1)
    """Independent chains: other initial weights, other data orders."""
    controls: tuple[Control, ...] = ("reinit", "shuffled")
    """What each ticket is compared with: other initial weights, its mask shuffled within layers, or as many weights
    anywhere."""
    control_every: int = Field(default=1, ge=1)
    """Controls are trained at every so many levels, counted back from the last."""

    def check(self) -> None:
        """Checks the chain, and compares attacks with the network and examples with the data."""
        self.check_chain(self.train)
        self.check_measurement()

    async def run(self, flow: Flow) -> None:
        """The chains, side by side."""
        await flow.together(*(self.chain(flow.at(replicate=index), index) for index in range(self.replicates)))

    async def chain(self, flow: Flow, replicate: int) -> None:
        """One replicate: its tickets, each beside its controls."""
        train, measured = self.seeded(replicate), []
        depth = len(list(self.densities(train)))
        for ticket in self.tickets(flow, train):
            measured.append(ticket.flow.step(self.measurement(train), trained=ticket.trained))
            if ticket.mask is not None and (depth - ticket.level) % self.control_every == 0:
                measured += self.measured_controls(ticket, ticket.mask, replicate)
        await flow.together(*measured)

    def measured_controls(self, ticket: Ticket, mask: Handle, replicate: int) -> Iterator[Handle]:
        """The networks that tell whether it is the ticket, and not just its sparsity, that counts."""
        for control in self.controls:
            # Other initial weights have no rewind point: they are trained from their own beginning.
            train = self.seeded(replicate) if control == "reinit" else ticket.train
            trained = controlled(ticket.flow, control, train, ticket.start, mask, replicate)
            yield ticket.flow.at(control=control).step(self.measurement(train), trained=trained)

    def report(self, finished: Sequence[Finished]) -> Report:
        """Accuracy and robust accuracy over density, tickets beside their controls."""
        results = [self._point(*measured) for measured in evaluations(finished)]
        arms = ["ticket", *self.controls]
        names = ["clean", *(f"ε={epsilon:g}" for epsilon in self.epsilons)]
        shown = [names[0], *names[1:][-1:]]  # a terminal has room for one budget; the figure has them all
        densities = sorted({point["density"] for point in results}, reverse=True)
        lines = dict(zip(arms, ("-", "--", ":", "-."), strict=False))
        network, data = kind_of(type(self.train.architecture)), kind_of(type(self.train.data))
        return Report(
            title=f"Iterative magnitude pruning, {network} on {data}",
            columns=["kept %", *(f"{arm} {name}" for arm in arms for name in shown)],
            rows=[
                [f"{100 * density:.1f}", *(_spread(results, arm, density, name) for arm in arms for name in shown)]
                for density in densities
            ],
            results=results,
            notes=notes_on(finished, self.replicates),
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

    def _point(self, evaluation: Finished, trained: Finished) -> dict[str, Any]:
        return {
            "arm": evaluation.at.get("control", "ticket"),
            "replicate": evaluation.at["replicate"],
            "level": evaluation.at["level"],
            "density": trained.metrics["density"],
            **self.accuracies(evaluation),
            "step": evaluation.step.key,
        }


def _spread(results: Sequence[dict[str, Any]], arm: str, density: float, name: str) -> str:
    """Of one arm at one density, over replicates."""
    return spread([point[name] for point in results if point["arm"] == arm and point["density"] == density])
