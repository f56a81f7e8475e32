"""The report of an epsilon sweep: the matrix of training and attack radii, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import nan
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from cluster.flow import describe
from cluster.ledger import Damaged
from cluster.runs import Finished
from tasks.component import kind_of
from tasks.measuring.intervals import accuracy_of
from tasks.measuring.outcomes import FILE, Outcomes
from tasks.measuring.over_design import BestTraining, best_training
from tasks.measuring.spectrum import spectrum
from workflows.heat import HeatMap
from workflows.report import Report, Section

if TYPE_CHECKING:
    from workflows.epsilon_sweep import EpsilonSweep

Results = list[dict[str, Any]]


@dataclass(frozen=True)
class Panel:
    """What one matrix is of."""

    weights: str
    network: str
    """Dense, a level of a pruning chain, or under a mask."""


@dataclass(frozen=True)
class Row:
    """One trained network under all attacks."""

    panel: Panel
    epsilon: float
    """Radius of its training."""
    replicate: int
    density: float
    cells: Mapping[float, Finished]
    """By the radius of the attacks."""
    outcomes: Outcomes


def report_on(sweep: EpsilonSweep, finished: Sequence[Finished]) -> Report:
    """The report on what is finished so far.

    Args:
        sweep: the workflow.
        finished: its steps.
    """
    trained = {step.step.key: step for step in finished if step.kind == "train"}
    rows, complaints = _rows(sweep, finished, trained)
    panels = list(dict.fromkeys(row.panel for row in rows))
    matrix = [entry for panel in panels for entry in _matrix(sweep, [row for row in rows if row.panel == panel])]
    best = [(panel, found) for panel in panels for found in _best(sweep, [row for row in rows if row.panel == panel])]
    names = ["clean", *(f"δ={delta:g}" for delta in sweep.deltas)]
    about = {"network": len({panel.network for panel in panels}) > 1, "weights": len(sweep.weights) > 1}
    shown = [field for field, several in about.items() if several]
    network, data = kind_of(type(sweep.train.architecture)), kind_of(type(sweep.train.data))
    return Report(
        title=f"Trained at ε with {kind_of(type(sweep.train.objective))}, attacked at δ: {network} on {data}",
        columns=[*shown, "ε", *names],
        rows=[
            [*(getattr(panel, field) for field in shown), f"{epsilon:g}", *line]
            for panel in panels
            for epsilon, line in _lines(sweep, [entry for entry in matrix if entry["panel"] == panel])
        ],
        results=[*map(_flat, matrix), *({**asdict(panel), **asdict(found)} for panel, found in best)],
        sections=[
            section
            for section in (_best_section(best, shown), _watched(rows, trained), *_analyses(finished))
            if section.rows
        ],
        notes=[
            *_collapsed(rows),
            *_warnings(finished),
            *complaints,
            *_stops(trained.values()),
            *_notes(sweep, finished),
        ],
        maps=[_heat(sweep, panel, [entry for entry in matrix if entry["panel"] == panel], best) for panel in panels],
        x_label=f"δ of the attacks, {sweep.attacks[0].norm}",
        y_label="ε of the training",
    )


def _rows(
    sweep: EpsilonSweep, finished: Sequence[Finished], trained: Mapping[str, Finished]
) -> tuple[list[Row], list[str]]:
    """The networks with at least one cell, in the order of the grid, and what cannot be read."""
    cells: dict[tuple[Panel, float, int], dict[float, Finished]] = {}
    for step in finished:
        if step.kind == "evaluate" and step.at.get("delta") in sweep.deltas and step.at["epsilon"] in sweep.epsilons:
            place = (_panel(step), step.at["epsilon"], step.at["replicate"])
            cells.setdefault(place, {}).setdefault(step.at["delta"], step)
    rows, complaints = [], []
    for (panel, epsilon, replicate), found in cells.items():
        try:
            outcomes = spectrum([Outcomes.from_bytes(step.step.read(FILE)) for step in found.values()])
        except Damaged as problem:
            complaints.append(f"ε={epsilon:g}, replicate {replicate} is left out: {problem}")
            continue
        source = trained[next(iter(found.values())).step.manifest["inputs"]["trained"]]
        rows.append(Row(panel, epsilon, replicate, source.metrics["density"], found, outcomes))
    order = list(dict.fromkeys(row.panel for row in rows))
    return sorted(rows, key=lambda row: (order.index(row.panel), row.epsilon, row.replicate)), complaints


def _panel(step: Finished) -> Panel:
    network = step.at.get("mask") or (f"level {step.at['level']}" if "level" in step.at else "dense")
    return Panel(step.at["weights"], network)


def _matrix(sweep: EpsilonSweep, rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Each cell of a matrix: the mean over replicates, and an interval that holds those of all of them.

    Accuracy falls along delta in every replicate, and so do both ends of its interval: their mean, lowest and highest
    fall as well.
    """
    for epsilon in sweep.epsilons:
        own = [row for row in rows if row.epsilon == epsilon]
        for delta in (0.0, *sweep.deltas):
            measured = [row for row in own if not delta or delta in row.cells]
            each = [accuracy_of(row.outcomes.standing(delta) if delta else row.outcomes.correct) for row in measured]
            if each:
                yield {
                    "panel": own[0].panel,
                    "density": own[0].density,
                    "epsilon": epsilon,
                    "delta": delta,
                    "accuracy": mean(found["accuracy"] for found in each),
                    "low": min(found["low"] for found in each),
                    "high": max(found["high"] for found in each),
                    "replicates": [found["accuracy"] for found in each],
                    "steps": [row.cells[delta].step.key for row in measured] if delta else [],
                }


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {**asdict(entry["panel"]), **{name: value for name, value in entry.items() if name != "panel"}}


def _lines(sweep: EpsilonSweep, matrix: Results) -> Iterator[tuple[float, list[str]]]:
    """The rows of a matrix as text: accuracy and half of its interval."""
    for epsilon in sweep.epsilons:
        found = {entry["delta"]: entry for entry in matrix if entry["epsilon"] == epsilon}
        if found:
            yield epsilon, [_spread(found.get(delta)) for delta in (0.0, *sweep.deltas)]


def _spread(entry: Mapping[str, Any] | None) -> str:
    return "" if entry is None else f"{100 * entry['accuracy']:.1f}±{50 * (entry['high'] - entry['low']):.1f}"


def _best(sweep: EpsilonSweep, rows: Sequence[Row]) -> Iterator[BestTraining]:
    """For each radius of attack that all networks of the grid have met, the training that serves best."""
    wanted = {(epsilon, replicate) for epsilon in sweep.epsilons for replicate in range(sweep.replicates)}
    if len(sweep.epsilons) < 2 or len(rows[0].outcomes) < 2:
        return
    for delta in sweep.deltas:
        met = [row for row in rows if delta in row.cells]
        if {(row.epsilon, row.replicate) for row in met} != wanted:
            continue
        standing: dict[float, list[torch.Tensor]] = {}
        for row in met:
            standing.setdefault(row.epsilon, []).append(row.outcomes.standing(delta))
        found = best_training(delta, standing)
        if found.accuracy:  # where nothing stands, nothing is best
            yield found


def _best_section(best: Sequence[tuple[Panel, BestTraining]], shown: Sequence[str]) -> Section:
    return Section(
        "Best training radius for each attack. Its accuracy is the highest of the column, and flattered as such; the "
        "gain over the matched radius is measured on other seeds and other examples than the choice was made on, with "
        "an approximate interval over seeds",
        [*shown, "δ", "best ε", "ε/δ", "accuracy %", "matched ε", "gain, points", "interval (95 %)"],
        [
            [
                *(getattr(panel, field) for field in shown),
                f"{found.delta:g}",
                f"{found.epsilon:g}",
                f"{found.epsilon / found.delta:.2f}",
                f"{100 * found.accuracy:.1f}",
                f"{found.matched:g}",
                *_gain(found),
            ]
            for panel, found in best
        ],
    )


def _gain(found: BestTraining) -> list[str]:
    if found.chosen == (found.matched,):
        return ["none", "the matched ε is chosen"]
    return [f"{100 * found.gain:+.1f}", f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"]


def _watched(rows: Sequence[Row], trained: Mapping[str, Finished]) -> Section:
    """Robust overfitting: how much of the best robust validation accuracy is left at the end."""
    trainings: dict[tuple[str, float], dict[str, Finished]] = {}
    for row in rows:
        key = next(iter(row.cells.values())).step.manifest["inputs"]["trained"]
        if "robust_accuracy" in trained[key].metrics["last"]:
            trainings.setdefault((row.panel.network, row.epsilon), {})[key] = trained[key]
    lines = []
    for (network, epsilon), steps in trainings.items():
        ends = [[100 * step.metrics[which]["robust_accuracy"] for step in steps.values()] for which in ("best", "last")]
        epochs = ", ".join(str(step.metrics["best"]["epoch"]) for step in steps.values())
        best, last = map(mean, ends)
        lines.append([network, f"{epsilon:g}", f"{best:.1f}", f"{last:.1f}", f"{last - best:+.1f}", epochs])
    return Section(
        "Robust overfitting: robust validation accuracy of the best and of the last network, means over replicates; "
        "the best was chosen by these very figures, so a small difference is chance",
        ["network", "ε", "best %", "last %", "difference", "best epoch"],
        lines,
    )


def _analyses(finished: Sequence[Finished]) -> Iterator[Section]:
    yield _sensitivity([step for step in finished if step.kind == "filter-sensitivity"])
    yield _precision([step for step in finished if "rounded" in step.at])


def _sensitivity(steps: Sequence[Finished]) -> Section:
    """How much each layer stretches a perturbation, and what a filter of the first layer can make of it."""
    layers = [layer["layer"].removesuffix(".weight") for layer in steps[0].metrics["layers"]] if steps else []
    return Section(
        "Gain in Euclidean length that each layer gives to perturbations by PGD-20, mean over replicates; first "
        "filters: their largest response to a change of each pixel by 1, mean over filters",
        ["network", "weights", "ε", *layers, "first filters"],
        [
            [
                place[0].network,
                place[0].weights,
                f"{place[1]:g}",
                *(
                    _mean([step.metrics["layers"][layer]["gain"] for step in group], digits=2)
                    for layer in range(len(layers))
                ),
                _mean([step.metrics["filters"]["mean"] for step in group if step.metrics["filters"]], digits=2),
            ]
            for place, group in _grouped(steps).items()
        ],
    )


def _precision(steps: Sequence[Finished]) -> Section:
    """Accuracy under attack with features rounded, against attacks through the rounding, from afar and without eyes."""
    sizes = sorted({step.at["rounded"] for step in steps})
    delta = steps[0].metrics["robust"][0]["epsilon"] if steps else 0
    return Section(
        f"Accuracy in percent at δ={delta:g} with features rounded to multiples of a step, mean over replicates; all "
        "columns, the unrounded too, meet the attacks of the sweep, then square, then transfer from the unrounded",
        ["network", "weights", "ε", *(f"step {size:g}" if size else "unrounded" for size in sizes)],
        [
            [
                place[0].network,
                place[0].weights,
                f"{place[1]:g}",
                *(
                    _mean([100 * s.metrics["robust"][0]["accuracy"] for s in group if s.at["rounded"] == size])
                    for size in sizes
                ),
            ]
            for place, group in _grouped(steps).items()
        ],
    )


def _mean(values: Sequence[float | None], digits: int = 1) -> str:
    known = [value for value in values if value is not None]
    return f"{mean(known):.{digits}f}" if known else ""


def _grouped(steps: Sequence[Finished]) -> dict[tuple[Panel, float], list[Finished]]:
    """Replicates together."""
    groups: dict[tuple[Panel, float], list[Finished]] = {}
    for step in steps:
        groups.setdefault((_panel(step), step.at["epsilon"]), []).append(step)
    return groups


def _heat(sweep: EpsilonSweep, panel: Panel, matrix: Results, best: Sequence[tuple[Panel, BestTraining]]) -> HeatMap:
    found = {(entry["epsilon"], entry["delta"]): 100 * entry["accuracy"] for entry in matrix}
    columns = (0.0, *sweep.deltas)
    kept = f", {100 * matrix[0]['density']:.3g} % kept" if matrix[0]["density"] < 1 else ""
    return HeatMap(
        title=f"{panel.weights} network, {panel.network}{kept}",
        x=["clean", *(f"{delta:g}" for delta in sweep.deltas)],
        y=[f"{epsilon:g}" for epsilon in sweep.epsilons],
        values=[[found.get((epsilon, delta), nan) for delta in columns] for epsilon in sweep.epsilons],
        framed=[
            (sweep.epsilons.index(each.epsilon), columns.index(each.delta)) for owner, each in best if owner == panel
        ],
    )


def _collapsed(rows: Sequence[Row]) -> Iterator[str]:
    """Networks that have learned nothing: a common end of adversarial training at a large radius."""
    for row in rows:
        if (row.outcomes.predictions == row.outcomes.predictions[0]).all():
            yield (
                f"warning, ε={row.epsilon:g} replicate {row.replicate}: the network answers one class to everything; "
                "a `budget: ramp` or a smaller learning rate may save such a training"
            )


def _warnings(finished: Sequence[Finished]) -> Iterator[str]:
    """Each warning once, with the networks that it is about."""
    places: dict[str, dict[str, None]] = {}
    for step in finished:
        for warning in step.metrics.get("warnings", []):
            places.setdefault(warning, {})[_place(step)] = None
    for warning, where in places.items():
        yield f"warning, {'; '.join(where)}: {warning}"


def _place(step: Finished) -> str:
    """Which network a step is about."""
    return describe({"ε" if name == "epsilon" else name: at for name, at in step.at.items() if name != "delta"})


def _stops(trained: Iterable[Finished]) -> Iterator[str]:
    """Trainings that ended early."""
    for step in trained:
        stopped = step.metrics.get("stopped", {})
        if stopped.get("why") == "catastrophic-overfitting":
            yield (
                f"catastrophic overfitting, {_place(step)}: robust training accuracy fell from "
                f"{100 * stopped['before']:.1f} to {100 * stopped['after']:.1f} % by step {stopped['detected_at']}; "
                f"training was stopped and went back to step {stopped['rolled_back_to']}"
            )
        elif stopped:
            yield f"stopped early, {_place(step)}: no better network since, at step {stopped['detected_at']}"


def _notes(sweep: EpsilonSweep, finished: Sequence[Finished]) -> Iterator[str]:
    yield (
        f"accuracy in percent on the {sweep.split} split, mean of the finished of {sweep.replicates} replicates; "
        "± half of the interval that holds the 95 % intervals of all of them"
    )
    yield (
        "a cell counts what broke an example at its own δ or at a smaller one, by the attacks of the sweep or by the "
        "few steps of fmn that show them where to set in"
    )
    if sweep.epsilons[0] == 0:
        yield "ε=0 is trained without adversary; its best network is the one of highest clean validation accuracy"
    training = sum(step.metrics.get("sample_steps", 0) for step in finished)
    selection = sum(step.metrics.get("selection_steps", 0) for step in finished)
    matrix, analyses = (
        sum(step.metrics["cost"] for step in finished if "cost" in step.metrics and _analyses_of(step) == own)
        for own in (False, True)
    )
    watched = f", {selection:,} images to watch over it" if selection else ""
    more = f", {analyses:,} for the analyses" if analyses else ""
    yield f"{training:,} sample-steps of training{watched}; {matrix:,} images attacked for the matrix{more}"


def _analyses_of(step: Finished) -> bool:
    return step.kind == "filter-sensitivity" or "rounded" in step.at
