"""Pruning methods side by side: equal density, equal cost, one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import islice, product
from math import nan
from statistics import mean
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cluster.flow import Flow, Handle
from cluster.runs import Finished
from tasks.attacks import parts_of
from tasks.component import kind_of, require_rising
from tasks.corruptions import SEVERITIES
from tasks.measuring.corrupted import EvaluateCorrupted
from tasks.measuring.evaluate import names_of
from workflows.chain import Ticket
from workflows.evaluate import Corruptions
from workflows.figures import latencies
from workflows.heat import HeatMap
from workflows.measured import Control, Measured, cost_note, current, seeded, spread
from workflows.pruning_methods import Contest, PruningMethod
from workflows.report import Report, Section
from workflows.subjects import Name, at_path, require_no_teacher

TRAINED, DENSE = "trained", "dense"
MEASURED = ("evaluate", "evaluate-corrupted", "compact")
"""What is asked for once of each network."""


class ComparePruning(Measured):
    """Any pruning methods at equal density and equal sample-steps (after Piras et al. 2024, arXiv 2409.01249).

    Every method gets the same training, data and budget; what it spends is counted from the steps behind its network,
    those that it shares with others included. The dense network is trained for the whole budget.
    """

    kind: Literal["compare-pruning"] = "compare-pruning"
    methods: dict[Name, PruningMethod] = Field(min_length=1)
    """What is compared, by a name of one's choice."""
    only: tuple[str, ...] = ()
    """The methods to run, by their names; all unless given."""
    sparsities: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.9, 0.95, 0.99)
    """Shares of the prunable weights to remove, rising."""
    epochs: int = Field(ge=1)
    """The budget: epochs of `train` that the trainings of one network may cost together, whatever `train.epochs` is."""
    replicates: int = Field(default=1, ge=1)
    """Networks of each method: other initial weights, other data orders."""
    controls: tuple[Control, ...] = ()
    """What each network is compared with, by its retraining alone: `reinit`, `shuffled`, `random`."""
    corruptions: Corruptions = ()
    """Common corruptions to measure under; `benchmark` stands for the fifteen that are usually reported."""
    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = Field(default=SEVERITIES, min_length=1)
    """Of the corruptions, rising."""

    @field_validator("only")
    @classmethod
    def _each_once(cls, only: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(only))

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        if DENSE in self.methods:
            raise ValueError(f"methods: no method can be called '{DENSE}': that is the network without pruning")
        for name in self.only:
            if name not in self.methods:
                close = get_close_matches(name, self.methods, n=1)
                hint = f"did you mean '{close[0]}'? " if close else ""
                raise ValueError(f"only: there is no method '{name}'; {hint}allowed: {', '.join(self.methods)}")
        chosen = list(self.chosen().items())
        for place, (name, method) in enumerate(chosen):
            for other, same in chosen[:place]:
                if method == same:
                    raise ValueError(f"methods: '{other}' and '{name}' are the same method with the same fields")
        return self

    @model_validator(mode="after")
    def _one_budget_of_attack(self) -> Self:
        require_rising("sparsities", self.sparsities)
        if not self.sparsities:
            raise ValueError("sparsities must not be empty")
        if len(self.epsilons) > 1:
            raise ValueError("epsilons: the table has room for one radius")
        if self.train.stop_at is not None or self.train.sparsifier is not None:
            raise ValueError("train: the methods decide when to stop and how to sparsify; leave out both")
        return self

    def chosen(self) -> dict[str, PruningMethod]:
        """The methods that run."""
        return {name: method for name, method in self.methods.items() if not self.only or name in self.only}

    def contest(self, sparsity: float, replicate: int) -> Contest:
        """What is the same for all methods."""
        return Contest(seeded(self.train, replicate), round(1 - sparsity, 12), self.epochs)

    def check(self) -> None:
        """Asks every method whether it can reach every density, and compares attacks with network and data."""
        require_no_teacher(self.train)
        with at_path("train.data"):
            self.train.data.load("validation")
        self.check_measurement()
        contests = {sparsity: self.contest(sparsity, 0) for sparsity in self.sparsities}
        for (name, method), (sparsity, contest) in product(self.chosen().items(), contests.items()):
            with at_path(f"methods.{name} at sparsity {sparsity:g}"):
                method.check(contest)

    async def run(self, flow: Flow) -> None:
        """All networks side by side."""
        networks = [self.dense(flow.at(replicate=replicate), replicate) for replicate in range(self.replicates)]
        for name, sparsity, replicate in product(self.chosen(), self.sparsities, range(self.replicates)):
            here = flow.at(method=name, sparsity=sparsity, replicate=replicate)
            networks.append(self.pruned(here, self.chosen()[name], sparsity, replicate))
        await flow.together(*networks)

    async def dense(self, flow: Flow, replicate: int) -> None:
        """The network without pruning."""
        train = self.contest(self.sparsities[0], replicate).training(self.epochs)
        await flow.together(*self.measured(flow.at(method=DENSE), Ticket(flow, 0, train, None, None, flow.step(train))))

    async def pruned(self, flow: Flow, method: PruningMethod, sparsity: float, replicate: int) -> None:
        """One network, and its controls."""
        ticket = await method.ticket(flow, self.contest(sparsity, replicate))
        measured = list(self.measured(flow, ticket))
        if (compact := method.compacted(ticket)) is not None:
            measured.append(compact)
        measured += self.measured_controls(replace(ticket, flow=flow), ticket.train, replicate)
        await flow.together(*measured)

    def measured(self, flow: Flow, ticket: Ticket) -> Iterator[Handle]:
        """All that a row of the table needs."""
        yield flow.step(self.measurement(ticket.train), trained=ticket.trained)
        if self.corruptions:
            corrupted = EvaluateCorrupted(
                data=ticket.train.data,
                architecture=ticket.train.architecture,
                split=self.split,
                weights=self.weights,
                corruptions=self.corruptions,
                severities=self.severities,
                examples=self.examples,
                threads=ticket.train.threads,
                gpus=ticket.train.gpus,
            )
            yield flow.step(corrupted, trained=ticket.trained)
        yield from self.timed(flow, ticket.train, ticket.trained)

    def report(self, finished: Sequence[Finished]) -> Report:
        """One row for each method and density, in the taxonomy of the benchmark."""
        by_key = {step.step.key: step for step in finished}
        measured = list(current([step for step in finished if step.kind in MEASURED]))
        points = [self._point(step, by_key) for step in measured if step.kind == "evaluate"]
        seconds = latencies(finished)
        for point in points:
            if (key := by_key[point["step"]].step.manifest["inputs"][TRAINED]) in seconds:
                point["latency"] = seconds[key]
        corrupted = {_place(step): step for step in measured if step.kind == "evaluate-corrupted"}
        for point in (each for each in points if each["arm"] == "ticket"):
            if (step := corrupted.get((point["method"], point["sparsity"], point["replicate"]))) is not None:
                point["corruption"] = step.metrics["mean_given"]
        names = self._columns()
        groups = [
            (method, sparsity, arm)
            for sparsity in (0.0, *self.sparsities)
            for method in (DENSE, *self.chosen())
            for arm in ("ticket", *self.controls)
            if any((each["method"], each["sparsity"], each["arm"]) == (method, sparsity, arm) for each in points)
        ]
        network, data = kind_of(type(self.train.architecture)), kind_of(type(self.train.data))
        budget = self.contest(self.sparsities[0], 0).cost(self.epochs, self.train.objective)
        return Report(
            title=f"Pruning methods, {network} on {data}, {kind_of(type(self.train.objective))} training",
            columns=[
                "method",
                "stage, steps, what, scope, criterion, retraining",
                "kept %",
                *(f"{name} %" for name in names),
                "cost %",
            ],
            rows=[self._row(points, *group, names, budget) for group in groups],
            results=points,
            notes=[
                f"cost: sample-steps behind the network, in percent of the {budget:,} of its budget",
                *self._about_attacks(),
                cost_note(finished, self.replicates),
                "sparsity of weights is a mask on dense kernels: any speed-up by it would be simulated",
                *(_smaller(step) for step in measured if step.kind == "compact"),
            ],
            maps=list(self._maps(points, names)) if points else (),
            sections=[section for section in (_warnings(measured),) if section.rows],
        )

    def _about_attacks(self) -> list[str]:
        if not self.attacks:
            return []
        return [
            f"attacks: norm {self.attacks[0].norm}, radius {self.epsilons[0]:g}; results.json has the 95 % interval of "
            "each accuracy under all of them"
        ]

    def _columns(self) -> list[str]:
        """What was measured: clean accuracy, that under the first attack, under all, and under corruptions."""
        attacks = list(dict.fromkeys((self._attacks()[:1], self._attacks()))) if self.attacks else []
        return ["clean", *map("+".join, attacks), *(["corruption"] if self.corruptions else [])]

    def _attacks(self) -> tuple[str, ...]:
        return tuple(kind_of(type(attack)) for attack in self.attacks)

    def _point(self, evaluation: Finished, by_key: Mapping[str, Finished]) -> dict[str, Any]:
        metrics = evaluation.metrics
        method, sparsity, replicate = _place(evaluation)
        trained = by_key.get(evaluation.step.manifest["inputs"][TRAINED])
        point = {
            "method": method,
            "sparsity": sparsity,
            "replicate": replicate,
            "arm": evaluation.at.get("control", "ticket"),
            "density": trained.metrics["density"] if trained else None,
            "clean": metrics["clean"]["accuracy"],
        }
        for entry in metrics["robust"]:
            # At one radius, what the parts of the first attack broke is all that it breaks.
            own = islice(names_of(parts_of(self.attacks)), len(parts_of(self.attacks[:1])))
            first = sum(entry["broken_by"][name] for name in own)
            point["+".join(self._attacks()[:1])] = (metrics["correct"] - first) / metrics["examples"]
            point["+".join(self._attacks())] = entry["accuracy"]
            point["interval"] = [entry["low"], entry["high"]]
        return {**point, "sample_steps": _behind(evaluation, by_key), "step": evaluation.step.key}

    def _row(
        self,
        points: Sequence[Mapping[str, Any]],
        method: str,
        sparsity: float,
        arm: str,
        names: Sequence[str],
        budget: int,
    ) -> list[str]:
        here = [each for each in points if (each["method"], each["sparsity"], each["arm"]) == (method, sparsity, arm)]
        taxonomy = ", ".join(self.methods[method].taxonomy) if arm == "ticket" and method != DENSE else ""
        kept = {f"{100 * each['density']:.2f}" for each in here if each["density"] is not None}
        cost = {f"{100 * each['sample_steps'] / budget:.0f}" for each in here}
        return [
            method if arm == "ticket" else f"{method} {arm}",
            taxonomy,
            " ".join(sorted(kept)),
            *(spread([each[name] for each in here if name in each]) for name in names),
            " ".join(sorted(cost)),
        ]

    def _maps(self, points: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterator[HeatMap]:
        """For each sparsity what every method reaches, the dense network on top."""
        methods = [DENSE, *self.chosen()][::-1]
        for sparsity in self.sparsities:
            here = [each for each in points if each["arm"] == "ticket" and each["sparsity"] in (sparsity, 0.0)]
            own = {method: [each for each in here if each["method"] == method] for method in methods}
            values = [
                [_mean([each[name] for each in own[method] if name in each]) for name in names] for method in methods
            ]
            yield HeatMap(f"{100 * sparsity:g} % pruned", names, methods, values)


def _mean(shares: Sequence[float]) -> float:
    """In percent; NaN of nothing."""
    return 100 * mean(shares) if shares else nan


def _place(step: Finished) -> tuple[str, float, int]:
    return step.at["method"], step.at.get("sparsity", 0.0), step.at["replicate"]


def _behind(step: Finished, by_key: Mapping[str, Finished]) -> int:
    """Sample-steps of all that a network was made from, each step once."""
    seen: dict[str, Finished] = {}
    waiting = [step]
    while waiting:
        for key in waiting.pop().step.manifest["inputs"].values():
            if key in by_key and key not in seen:
                seen[key] = by_key[key]
                waiting.append(by_key[key])
    return sum(each.metrics.get("sample_steps", 0) for each in seen.values())


def _warnings(measured: Sequence[Finished]) -> Section:
    """Which figures are not to be trusted, and why."""
    rows = [
        [*map(str, _place(step)), step.at.get("control", "ticket"), warning]
        for step in measured
        for warning in step.metrics.get("warnings", [])
    ]
    return Section("Not to be trusted", ["method", "sparsity", "replicate", "network", "why"], rows)


def _smaller(compact: Finished) -> str:
    """What a structured network is without its mask."""
    metrics, (method, sparsity, replicate) = compact.metrics, _place(compact)
    return (
        f"{method} at sparsity {sparsity:g}, replicate {replicate}: step {compact.step.key[:12]} is the same network "
        f"without a mask, {metrics['parameters']:,} parameters instead of {metrics['before']:,} (logits differ by "
        f"{metrics['equivalence']['difference']:.0e} at most)"
    )
