"""The report of an instability analysis: barriers over the step at which networks part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cluster.runs import Finished
from tasks.analysis.interpolation import STABLE
from tasks.component import kind_of
from workflows.measured import notes_on, spread
from workflows.report import Curve, Report, Section

if TYPE_CHECKING:
    from workflows.connectivity import Connectivity

Results = list[dict[str, Any]]

PAIRS = {
    "orders": "two orders of the data from the weights of that step",
    "inits": "other initial weights under the same mask",
    "replicates": "networks of different replicates",
    "aligned": "the same with their channels matched",
}
"""What lies at the ends of a line, by its name."""


def report_on(workflow: Connectivity, finished: Sequence[Finished]) -> Report:
    """The report on what is finished so far.

    Args:
        workflow: that was run.
        finished: its steps.
    """
    results = list(_lines(finished))
    pairs = [pair for pair in PAIRS if any(point["pair"] == pair for point in results)]
    places = sorted({(-point["density"], point["rewind_step"]) for point in results})
    over_steps = len(workflow.rewind_steps) > 1
    architecture, data = kind_of(type(workflow.train.architecture)), kind_of(type(workflow.train.data))
    return Report(
        title=f"Error barriers between networks: {architecture} on {data}",
        columns=["kept %", "rewind step", *pairs],
        rows=[
            [f"{-100 * density:.1f}", f"{step}", *(_barrier(results, -density, step, pair) for pair in pairs)]
            for density, step in places
        ],
        results=results,
        sections=[section for section in [_masks(results)] if section.rows],
        notes=[
            f"barriers of the {workflow.split} error in points; below {100 * STABLE:g} counts as stable",
            *(f"{pair}: {PAIRS[pair]}" for pair in pairs),
            *notes_on(finished, workflow.replicates),
        ],
        curves=list(_over_steps(results, pairs) if over_steps else _along(results, pairs)),
        x_label="training step at which the networks part" if over_steps else "alpha, from one network to the other",
        y_label=f"{'error barrier' if over_steps else 'error'}, {workflow.split}, %",
        linear=True,
    )


def _lines(finished: Sequence[Finished]) -> Iterator[dict[str, Any]]:
    """Every line that was measured, with the density of its ends."""
    known = {step.step.key: step for step in finished}
    for step in finished:
        if step.kind != "interpolate":
            continue
        ends = [known.get(step.step.manifest["inputs"][name]) for name in ("first", "second")]
        if ends[0] is None or ends[1] is None:
            continue
        masks = ends[1].metrics.get("masks")
        yield {
            "pair": step.at["pair"],
            "replicate": step.at["replicate"],
            "rewind_step": step.at["rewind_step"],
            "density": ends[0].metrics["density"],
            **{
                name: step.metrics[name]
                for name in ("error_barrier", "loss_barrier", "stable", "distance", "alphas", "errors", "losses")
            },
            **({"masks": masks} if masks else {}),
            "step": step.step.key,
        }


def _barrier(results: Results, density: float, step: int, pair: str) -> str:
    return spread([point["error_barrier"] for point in results if _place(point) == (density, step, pair)])


def _place(point: dict[str, Any]) -> tuple[float, int, str]:
    return point["density"], point["rewind_step"], point["pair"]


def _masks(results: Results) -> Section:
    """What the masks of different replicates share, in percent."""
    matched = [point for point in results if "masks" in point]
    return Section(
        "Masks of different replicates: kept by both over kept by either, %",
        ["kept %", "rewind step", "as they are", "by chance", "aligned"],
        [
            [
                f"{100 * density:.1f}",
                f"{step}",
                *(
                    spread([point["masks"][when][what] for point in matched if _place(point)[:2] == (density, step)])
                    for when, what in (("before", "iou"), ("before", "chance"), ("after", "iou"))
                ),
            ]
            for density, step in sorted({_place(point)[:2] for point in matched})
        ],
    )


def _over_steps(results: Results, pairs: Sequence[str]) -> Iterator[Curve]:
    for name, density, pair, style in _arms(results, pairs):
        own = [point for point in results if (point["density"], point["pair"]) == (density, pair)]
        yield Curve(name, [(point["rewind_step"], 100 * point["error_barrier"]) for point in own], style)


def _along(results: Results, pairs: Sequence[str]) -> Iterator[Curve]:
    for name, density, pair, style in _arms(results, pairs):
        own = [point for point in results if (point["density"], point["pair"]) == (density, pair)]
        ends = [each for point in own for each in zip(point["alphas"], point["errors"], strict=True)]
        yield Curve(name, [(alpha, 100 * error) for alpha, error in ends], style)


def _arms(results: Results, pairs: Sequence[str]) -> Iterator[tuple[str, float, str, dict[str, Any]]]:
    """Name, density, pair and style of every curve: a colour for each pair, dense ones drawn through."""
    densities = sorted({point["density"] for point in results}, reverse=True)
    for density, line in zip(densities, ("-", "--"), strict=False):
        for place, pair in enumerate(pairs):
            kept = "dense" if density == 1 else f"{100 * density:.1f} % kept"
            yield f"{pair}, {kept}", density, pair, {"linestyle": line, "color": f"C{place}"}
