"""The report of an evaluation: figures with their intervals, and everything that they depend on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import mean
from typing import TYPE_CHECKING, Any

from cluster.ledger import Damaged
from cluster.runs import Finished
from tasks.attacks import Attack
from tasks.attacks.transfer import Transfer
from tasks.component import kind_of
from tasks.corruptions import BENCHMARK
from tasks.measuring.compare import paired
from tasks.measuring.outcomes import FILE, Outcomes
from workflows.measured import current
from workflows.report import Curve, Report, Section

if TYPE_CHECKING:
    from workflows.evaluate import EvaluateModels

Results = list[dict[str, Any]]

INTERVAL = "interval (95 %)"


def report_on(evaluation: EvaluateModels, finished: Sequence[Finished]) -> Report:
    """The report on what is finished so far.

    Args:
        evaluation: the workflow.
        finished: its steps.
    """
    finished = list(current(finished))
    merged = {step.at["model"]: step for step in finished if step.kind == "merge-outcomes"}
    merged = {name: merged[name] for name in evaluation.models if name in merged}
    points = [point for name, step in merged.items() for point in _points(name, step)]
    compared, complaints = _compared(merged)
    data = sorted({step.step.manifest["task"]["data"]["kind"] for step in finished if step.kind == "evaluate"})
    corrupted = [point for step in finished if step.kind == "evaluate-corrupted" for point in _corrupted(step)]
    calibrated = [point for step in finished if step.kind == "calibrate-attacked" for point in _calibrated(step)]
    return Report(
        title=f"Robustness of {', '.join(evaluation.models)}{' on ' if data else ''}{', '.join(data)}",
        columns=["model", "ε", "accuracy %", INTERVAL, "broken by"],
        rows=[_row(point) for point in points],
        results=[*points, *compared, *corrupted, *calibrated],
        sections=[section for section in _sections(compared, corrupted, calibrated) if section.rows],
        notes=[*_warnings(merged), *complaints, *_threat(evaluation), *_examples(evaluation, merged)],
        about=_about(evaluation, merged),
        curves=[_curve(name, points) for name in merged] if evaluation.epsilons else (),
        x_label=f"ε, {evaluation.attacks[0].norm if evaluation.attacks else 'linf'}",
        y_label=f"{evaluation.split} accuracy, %",
        linear=True,
    )


def _points(name: str, step: Finished) -> Results:
    """Accuracy without attack, as epsilon 0, and at every epsilon."""
    metrics = step.metrics
    about = {"model": name, "examples": metrics["examples"], "step": step.step.key}
    clean = {"epsilon": 0.0, **{field: metrics["clean"][field] for field in ("accuracy", "low", "high")}}
    return [{**clean, "broken_by": {}, **about}, *({**entry, **about} for entry in metrics["robust"])]


def _row(point: Mapping[str, Any]) -> list[str]:
    most_first = sorted(point["broken_by"].items(), key=lambda entry: -entry[1])
    broken = ", ".join(f"{attack} {count}" for attack, count in most_first if count)
    return [
        point["model"],
        f"{point['epsilon']:g}" if point["epsilon"] else "clean",
        _percent(point["accuracy"]),
        f"{_percent(point['low'])} to {_percent(point['high'])}",
        broken,
    ]


def _curve(name: str, points: Results) -> Curve:
    own = [point for point in points if point["model"] == name]
    return Curve(
        name,
        [(point["epsilon"], 100 * point["accuracy"]) for point in own],
        band=[(point["epsilon"], 100 * point["low"], 100 * point["high"]) for point in own],
    )


def _compared(merged: Mapping[str, Finished]) -> tuple[Results, list[str]]:
    """Every other model beside the first on the same examples, and why one cannot be compared."""
    results: Results = []
    complaints: list[str] = []
    if len(merged) < 2:
        return results, complaints
    first, *others = merged
    for name in others:
        try:
            pair = [Outcomes.from_bytes(merged[each].step.read(FILE)) for each in (first, name)]
            differences = paired(*pair)
        except (Damaged, ValueError) as problem:
            complaints.append(f"{name} and {first} are not compared: {problem}")
            continue
        results += [{"model": name, "against": first, **asdict(difference)} for difference in differences]
    return results, complaints


def _corrupted(step: Finished) -> Results:
    about = {"model": step.at["model"], "examples": step.metrics["examples"], "step": step.step.key}
    return [
        {"corruption": kind, **entry, **about}
        for kind, found in step.metrics["corruptions"].items()
        for entry in found["severities"]
    ]


def _calibrated(step: Finished) -> Results:
    about = {"model": step.at["model"], "step": step.step.key}
    return [{**entry, **about} for entry in step.metrics["levels"]]


def _sections(compared: Results, corrupted: Results, calibrated: Results) -> Iterator[Section]:
    yield Section(
        f"Compared with {compared[0]['against'] if compared else ''} on the same examples: gained are those that only "
        "this model gets right, lost those that only the other does",
        ["model", "ε", "difference %", INTERVAL, "gained", "lost", "p"],
        [
            [
                point["model"],
                f"{point['epsilon']:g}" if point["epsilon"] else "clean",
                f"{100 * point['difference']:+.1f}",
                f"{100 * point['low']:+.1f} to {100 * point['high']:+.1f}",
                str(point["second_only"]),
                str(point["first_only"]),
                f"{point['p_value']:.2g}",
            ]
            for point in compared
        ],
    )
    yield _corruptions(corrupted)
    yield Section(
        "Calibration under PGD-20 to its last iterate",
        ["model", "ε", "accuracy %", "ECE %", "confidence when right %", "confidence when wrong %"],
        [
            [
                point["model"],
                f"{point['epsilon']:g}" if point["epsilon"] else "clean",
                *(_percent(point[field]) for field in ("accuracy", "ece", "confidence_right", "confidence_wrong")),
            ]
            for point in calibrated
        ],
    )


def _corruptions(corrupted: Results) -> Section:
    """A row for each corruption, and one for the mean of the benchmark's where all of them are there."""
    severities = sorted({point["severity"] for point in corrupted})
    found: dict[str, dict[str, list[float]]] = {}
    for point in corrupted:
        found.setdefault(point["model"], {}).setdefault(point["corruption"], []).append(point["accuracy"])
    rows = []
    for model, accuracies in found.items():
        benchmark = [accuracies[kind] for kind in BENCHMARK if kind in accuracies]
        if len(benchmark) == len(BENCHMARK):
            accuracies |= {"mean of the 15": [mean(column) for column in zip(*benchmark, strict=True)]}
        rows += [[model, kind, *map(_percent, each), _percent(mean(each))] for kind, each in accuracies.items()]
    return Section(
        f"Accuracy in percent under corruptions at severity {', '.join(map(str, severities))}: like CIFAR-10-C's, not "
        "comparable with published figures",
        ["model", "corruption", *map(str, severities), "mean"],
        rows,
    )


def _threat(evaluation: EvaluateModels) -> Iterator[str]:
    """What the attacker may do and what was tried."""
    if not evaluation.attacks:
        yield f"no attacks: nothing is said of robustness; seed of examples and corruptions: {evaluation.seed}"
        return
    radii = ", ".join(f"{epsilon:g}" for epsilon in evaluation.epsilons)
    yield (
        f"threat: any change of an image in [0, 1] within ε of {radii} in norm {evaluation.attacks[0].norm}; an attack "
        "counts when the image was checked to lie there and is misclassified in float32"
    )
    yield f"attacks, each on what the ones before it left: {'; '.join(map(_described, evaluation.attacks))}"
    if any(isinstance(attack, Transfer) for attack in evaluation.attacks):
        yield "transfer attacks leave the model that they come from alone: there they would be no transfer"
    votes = f", mean of {evaluation.votes} passes decides" if evaluation.votes > 1 else ""
    yield f"seed of examples and of all noise: {evaluation.seed}{votes}; what stands, stands against these attacks only"


def _about(evaluation: EvaluateModels, merged: Mapping[str, Finished]) -> dict[str, Any]:
    """Threat model, attacks, seed, and for each model the places of its examples in the split and its warnings."""
    return {
        "threat": {"norm": evaluation.attacks[0].norm, "epsilons": list(evaluation.epsilons), "box": [0, 1]}
        if evaluation.attacks
        else None,
        "attacks": [attack.model_dump(mode="json") for attack in evaluation.attacks],
        "votes": evaluation.votes,
        "seed": evaluation.seed,
        "split": evaluation.split,
        "weights": evaluation.weights,
        "models": {
            name: {
                "step": step.step.key,
                "warnings": step.metrics["warnings"],
                "examples": _indices(step) if evaluation.examples else "all",
            }
            for name, step in merged.items()
        },
    }


def _indices(step: Finished) -> list[int] | None:
    """Of the examples in the split; None where the file is damaged."""
    try:
        return Outcomes.from_bytes(step.step.read(FILE)).indices.tolist()
    except Damaged:
        return None


def _described(attack: Attack) -> str:
    """An attack with all its fields, and those that it consists of."""
    fields = attack.model_dump(mode="json", exclude={"kind", "norm"})
    words = f"{kind_of(type(attack))}({', '.join(f'{name} {value}' for name, value in fields.items())})"
    parts = attack.parts()
    return words if parts == (attack,) else f"{words}: {', then '.join(map(_described, parts))}"


def _examples(evaluation: EvaluateModels, merged: Mapping[str, Finished]) -> Iterator[str]:
    for name, step in merged.items():
        count, key = step.metrics["examples"], step.step.key
        drawn = f"drawn evenly over the classes with seed {evaluation.seed}" if evaluation.examples else "all of it"
        yield (
            f"{name}: {count} examples of the {evaluation.split} split, {drawn}; the index and the outcome of each are "
            f"in {FILE} of step {key[:12]}; {step.metrics['cost']:,} images went through the network"
        )


def _warnings(merged: Mapping[str, Finished]) -> Iterator[str]:
    for name, step in merged.items():
        for warning in step.metrics["warnings"]:
            yield f"warning, {name}: {warning}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
