"""Iterative magnitude pruning with rewinding, its retraining variants and its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, Literal

from pydantic import Field

from cluster.flow import Flow
from cluster.runs import Finished
from tasks.analysis.ticket import DescribeTicket
from tasks.component import kind_of
from tasks.pruning.prune import Prune
from workflows.chain import Chain
from workflows.figures import Figures, Measurement, figures_of, names_of
from workflows.measured import Measured, evaluations, notes_on, seeded, spread
from workflows.report import Curve, Report


class IMP(Measured, Chain):
    """Iterative magnitude pruning with rewinding (Frankle & Carbin 2019, Alg. 2; Frankle et al. 2020, Alg. 2)."""

    kind: Literal["imp"] = "imp"
    prune: Prune
    """What one level removes."""
    replicates: int = Field(default=1, ge=1)
    """Independent chains: other initial weights, other data orders."""
    control_every: int = Field(default=1, ge=1)
    """Controls are trained at every so many levels, counted back from the last."""
    distance: bool = False
    """Also measure how far the weights that each ticket keeps have moved from the rewind point (He et al. 2022)."""

    def check(self) -> None:
        """Checks the chain, and compares attacks with the network and examples with the data."""
        self.check_chain(self.train)
        self.check_measurement()

    async def run(self, flow: Flow) -> None:
        """The chains, side by side."""
        await flow.together(*(self.chain(flow.at(replicate=index), index) for index in range(self.replicates)))

    async def chain(self, flow: Flow, replicate: int) -> None:
        """One replicate: its tickets, each beside its controls."""
        train, measured = seeded(self.train, replicate), []
        depth = len(list(self.densities(train)))
        for ticket in self.tickets(flow, train):
            measured.append(ticket.flow.step(self.measurement(train), trained=ticket.trained))
            if self.distance:
                origin = flow.step(train.model_copy(update={"stop_at": self.rewind_step}))
                described = DescribeTicket(weights=self.weights, threads=train.threads)
                measured.append(ticket.flow.step(described, trained=ticket.trained, origin=origin))
            if ticket.level == depth:
                measured += self.timed(ticket.flow, train, ticket.trained)
            if ticket.mask is not None and (depth - ticket.level) % self.control_every == 0:
                measured += self.measured_controls(ticket, train, replicate)
        await flow.together(*measured)

    def planned(self) -> Mapping[str, float]:
        """The sparsity of the last level."""
        *_, last = self.densities(self.train)
        return {"sparsity": 1 - last}

    def figure_names(self) -> tuple[str, ...]:
        """Those of a ticket beside the dense network."""
        return names_of(self.epsilons, drops=True, latency=self.latency is not None)

    def figures(self, finished: Sequence[Finished]) -> Figures:
        """Those of the tickets of the last level, beside the dense networks."""
        levels: dict[int, list[Measurement]] = {}
        for evaluation, trained in evaluations(finished):
            if "control" not in evaluation.at:
                levels.setdefault(evaluation.at["level"], []).append(Measurement(evaluation, trained))
        return figures_of(levels[max(levels)], finished, dense=levels[0])

    def report(self, finished: Sequence[Finished]) -> Report:
        """Accuracy and robust accuracy over density, tickets beside their controls."""
        moved = {step.step.manifest["inputs"]["trained"]: step.metrics for step in finished if step.kind == "ticket"}
        results = [
            {**self._point(evaluation, trained), **_distance(moved.get(trained.step.key))}
            for evaluation, trained in evaluations(finished)
        ]
        arms = ["ticket", *self.controls]
        names = ["clean", *(f"ε={epsilon:g}" for epsilon in self.epsilons)]
        shown = [names[0], *names[1:][-1:]]  # a terminal has room for one budget; the figure has them all
        densities = sorted({point["density"] for point in results}, reverse=True)
        lines = dict(zip(arms, ("-", "--", ":", "-."), strict=False))
        network, data = kind_of(type(self.train.architecture)), kind_of(type(self.train.data))
        noise = self.train.data.label_noise
        return Report(
            title=f"Iterative magnitude pruning, {network} on {data}"
            + (f", {100 * noise:g} % of the training labels false" if noise else ""),
            columns=[
                "kept %",
                *(f"{arm} {name}" for arm in arms for name in shown),
                *(["distance moved"] if self.distance else []),
            ],
            rows=[
                [
                    f"{100 * density:.1f}",
                    *(_spread(results, arm, density, name) for arm in arms for name in shown),
                    *([_mean_distance(results, density)] if self.distance else []),
                ]
                for density in densities
            ],
            results=results,
            notes=[
                *notes_on(finished, self.replicates),
                *(["distance: Euclidean, from the rewind point, over the weights kept"] if self.distance else []),
            ],
            curves=[
                Curve(
                    f"{arm}, {name}",
                    [(100 * point["density"], 100 * point[name]) for point in results if point["arm"] == arm],
                    {"linestyle": lines[arm], "color": f"C{index}"},
                )
                for index, name in enumerate(names)
                for arm in arms
            ]
            + [Curve("distance moved, of the dense one's", _relative_distances(results), {"color": "C7"})],
            x_label="weights kept, %",
            y_label=f"{self.split} accuracy{' and distance' if self.distance else ''}, %",
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


def _distance(described: Mapping[str, Any] | None) -> dict[str, float]:
    return {} if described is None else {"distance": described["distance"]}


def _mean_distance(results: Sequence[dict[str, Any]], density: float) -> str:
    found = [point["distance"] for point in results if point["density"] == density and "distance" in point]
    return f"{mean(found):.1f}" if found else ""


def _relative_distances(results: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """Density and distance, both in percent: the dense network of the same replicate has moved by a hundred."""
    moved = [point for point in results if "distance" in point]
    dense = {point["replicate"]: point["distance"] for point in moved if point["level"] == 0}
    return [
        (100 * point["density"], 100 * point["distance"] / dense[point["replicate"]])
        for point in moved
        if point["replicate"] in dense
    ]
