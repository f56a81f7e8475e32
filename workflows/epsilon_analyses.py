"""What an epsilon sweep reports beside its matrix: robust overfitting, gain of layers, precision of features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING

from cluster.runs import Finished
from workflows.epsilon_matrix import Panel, Row, panel_of
from workflows.report import Section

if TYPE_CHECKING:
    from workflows.epsilon_sweep import EpsilonSweep


def sections_on(
    sweep: EpsilonSweep, rows: Sequence[Row], trained: Mapping[str, Finished], finished: Sequence[Finished]
) -> Iterator[Section]:
    """The tables, empty ones too.

    Args:
        sweep: the workflow.
        rows: of its matrices.
        trained: the trainings by key.
        finished: all steps.
    """
    yield _watched(rows, trained)
    yield _sensitivity([step for step in finished if step.kind == "filter-sensitivity"])
    yield _precision(sweep, [step for step in finished if "rounded" in step.at])


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


def _precision(sweep: EpsilonSweep, steps: Sequence[Finished]) -> Section:
    """Accuracy under attack with features rounded, against attacks through the rounding, from afar and without eyes."""
    sizes = sorted({step.at["rounded"] for step in steps})
    delta, after = (sweep.precision.delta, ", ".join(sweep.precision.after)) if sweep.precision else (0, "")
    return Section(
        f"Accuracy in percent at δ={delta:g} with the features after {after} rounded to multiples of a step, mean over "
        "replicates; every column, the unrounded too, meets the attacks of the sweep, then square, then transfer",
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
        groups.setdefault((panel_of(step), step.at["epsilon"]), []).append(step)
    return groups
