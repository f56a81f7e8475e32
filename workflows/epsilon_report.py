"""The report of an epsilon sweep: the matrix of training and attack radii, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from math import nan
from typing import TYPE_CHECKING, Any

from cluster.flow import describe
from cluster.runs import Finished
from tasks.component import kind_of
from tasks.measuring.over_design import BestTraining
from workflows.epsilon_analyses import sections_on
from workflows.epsilon_matrix import Panel, Row, best_of, matrix_of, rows_of
from workflows.heat import HeatMap
from workflows.report import Report, Section

if TYPE_CHECKING:
    from workflows.epsilon_sweep import EpsilonSweep

Results = list[dict[str, Any]]


def report_on(sweep: EpsilonSweep, finished: Sequence[Finished]) -> Report:
    """The report on what is finished so far.

    Args:
        sweep: the workflow.
        finished: its steps.
    """
    trained = {step.step.key: step for step in finished if step.kind == "train"}
    rows, complaints = rows_of(sweep, finished, trained)
    panels = {panel: [row for row in rows if row.panel == panel] for panel in dict.fromkeys(row.panel for row in rows)}
    matrices = {panel: list(matrix_of(sweep, own)) for panel, own in panels.items()}
    best = [(panel, found) for panel, own in panels.items() for found in best_of(sweep, own)]
    shown = ["network", "kept %"] if any(panel.network != "dense" for panel in panels) else []
    shown += ["weights"] if len(sweep.weights) > 1 else []
    places = {panel: _place_of(panel, own[0].density, shown) for panel, own in panels.items()}
    sections = [_best_section(best, shown, places), *sections_on(sweep, rows, trained, finished)]
    network, data = kind_of(type(sweep.train.architecture)), kind_of(type(sweep.train.data))
    return Report(
        title=f"Trained at ε with {kind_of(type(sweep.train.objective))}, attacked at δ: {network} on {data}",
        columns=[*shown, "ε", "clean", *(f"δ={delta:g}" for delta in sweep.deltas)],
        rows=[
            [*places[panel], f"{epsilon:g}", *line]
            for panel, matrix in matrices.items()
            for epsilon, line in _lines(sweep, matrix)
        ],
        results=[
            *({"what": "cell", **entry} for matrix in matrices.values() for entry in matrix),
            *({"what": "best", **asdict(panel), **asdict(found)} for panel, found in best),
            *_measured(finished),
        ],
        sections=[section for section in sections if section.rows],
        notes=[
            *_missing(sweep, matrices.values()),
            *complaints,
            *_collapsed(rows),
            *_stops(trained.values()),
            *_warnings(finished),
            *_notes(sweep, rows, finished),
        ],
        about=_about(sweep, trained.values()),
        maps=[_heat(sweep, panel, matrix, best) for panel, matrix in matrices.items()],
        x_label=f"δ of the attacks, {sweep.attacks[0].norm}; red: the best ε for it",
        y_label="ε of the training",
    )


def _place_of(panel: Panel, density: float, shown: Sequence[str]) -> list[str]:
    words = {"network": panel.network, "kept %": f"{100 * density:.1f}", "weights": panel.weights}
    return [words[field] for field in shown]


def _lines(sweep: EpsilonSweep, matrix: Results) -> Iterator[tuple[float, list[str]]]:
    """The rows of a matrix as text."""
    for epsilon in sweep.epsilons:
        found = {entry["delta"]: entry for entry in matrix if entry["epsilon"] == epsilon}
        if found:
            yield epsilon, [_cell(sweep, found.get(delta)) for delta in (0.0, *sweep.deltas)]


def _cell(sweep: EpsilonSweep, entry: Mapping[str, Any] | None) -> str:
    """Accuracy and its interval, marked where a training was rolled back or replicates are missing."""
    if entry is None:
        return ""
    mark = "*" if entry["rolled_back"] else ""
    there = len(entry["replicates"])
    some = f" {there}/{sweep.replicates}" if there < sweep.replicates else ""
    return f"{100 * entry['accuracy']:.0f}{mark} {100 * entry['low']:.0f}–{100 * entry['high']:.0f}{some}"


def _best_section(
    best: Sequence[tuple[Panel, BestTraining]], shown: Sequence[str], places: Mapping[Panel, Sequence[str]]
) -> Section:
    return Section(
        "Best training radius for each attack. Its accuracy is the highest of the column, and flattered as such. What "
        "it gains over training at δ itself is measured on other seeds and other examples than the choice was made on, "
        "with an approximate interval",
        [*shown, "δ", "best ε", "ε/δ", "accuracy %", "gain, points", "interval (95 %)"],
        [
            [
                *places[panel],
                f"{found.delta:g}",
                f"{found.epsilon:g}",
                f"{found.epsilon / found.delta:.2f}",
                f"{100 * found.accuracy:.1f}",
                *_gain(found),
            ]
            for panel, found in best
        ],
    )


def _gain(found: BestTraining) -> list[str]:
    if found.gain is None or found.low is None or found.high is None:
        return ["", "none is trained at this δ"]
    if found.chosen == (found.delta,):
        return ["0", "ε=δ is chosen"]
    return [f"{100 * found.gain:+.1f}", f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"]


def _measured(finished: Sequence[Finished]) -> Iterator[dict[str, Any]]:
    """The analyses, for machines."""
    for step in finished:
        if step.kind == "filter-sensitivity":
            layers = {name: step.metrics[name] for name in ("layers", "filters")}
            yield {"what": "sensitivity", **step.at, **layers, "step": step.step.key}
        elif "rounded" in step.at:
            yield {"what": "precision", **step.at, **step.metrics["robust"][0], "step": step.step.key}


def _about(sweep: EpsilonSweep, trained: Iterable[Finished]) -> dict[str, Any]:
    """The whole recipe, and what became of each training."""
    return {
        "recipe": sweep.model_dump(mode="json"),
        "trainings": [
            {
                **step.at,
                **{name: step.metrics[name] for name in ("last", "best", "stopped") if name in step.metrics},
                "step": step.step.key,
            }
            for step in trained
        ],
    }


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


def _missing(sweep: EpsilonSweep, matrices: Iterable[Results]) -> Iterator[str]:
    there = sum(len(entry["replicates"]) for matrix in matrices for entry in matrix if entry["delta"])
    wanted = len(sweep.epsilons) * len(sweep.deltas) * sweep.replicates * len(sweep.weights)
    if there < wanted or there % wanted:
        yield f"not all cells are there: {there} so far, and a whole matrix has {wanted}"


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
            yield f"stopped early, {_place(step)}: {stopped['why']}, at step {stopped['detected_at']}"


def _notes(sweep: EpsilonSweep, rows: Sequence[Row], finished: Sequence[Finished]) -> Iterator[str]:
    count = f"{len(rows[0].outcomes):,} " if rows else ""
    yield (
        f"each cell: accuracy in percent on {count}examples of the {sweep.split} split, the mean over replicates, "
        "and an interval that holds the 95 % intervals of all of them"
    )
    attacks = ", ".join(attack.model_dump_json() for attack in sweep.attacks)
    yield f"training: {sweep.train.objective.model_dump_json()}; attacks: {attacks}; all of it in results.json"
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
