"""The report of COLT: what its tickets are worth, how many rounds they took, and how far the parts agreed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from cluster.runs import Finished
from tasks.component import kind_of
from workflows.measured import cost_of, evaluations, notes_on, spread
from workflows.report import Curve, Report, Section

if TYPE_CHECKING:
    from workflows.colt import Colt

Points = list[dict[str, Any]]


def report_on(colt: Colt, finished: Sequence[Finished]) -> Report:
    """The report on what is finished so far.

    Args:
        colt: the workflow.
        finished: its steps.
    """
    arms = ["dense", *colt.partitions, *(["imp"] if colt.beside_imp else [])]
    order = {arm: place for place, arm in enumerate(arms)}
    kinds = ["ticket", *colt.controls]
    points = sorted(
        _points(colt, finished),
        key=lambda point: (
            point["replicate"],
            order[point["arm"]],
            -1 if point["transfer"] is None else point["transfer"],
            kinds.index(point["network"]),
        ),
    )
    rounds = sorted(_rounds(finished), key=lambda each: (each["replicate"], order[each["arm"]], each["round"]))
    searches = list(_searches(colt, finished, rounds))
    names = ["clean", *(f"ε={epsilon:g}" for epsilon in colt.epsilons)]
    shown = [names[0], *names[1:][-1:]]  # a terminal has room for one budget; the results have them all
    here = [point for point in points if point["transfer"] is None]
    network, data = kind_of(type(colt.train.architecture)), kind_of(type(colt.train.data))
    return Report(
        title=f"COLT with {colt.parts} parts, {network} on {data}",
        columns=["network", "kept %", *(f"{kind} {name}" for kind in kinds for name in shown)],
        rows=[
            [_name(arm), _kept(here, arm), *(_spread(here, arm, kind, name) for kind in kinds for name in shown)]
            for arm in arms
        ],
        results=[*points, *rounds, *searches],
        notes=[*_notes(colt), *notes_on(finished, colt.replicates)],
        sections=[
            *_effort(arms, searches, rounds),
            *(
                _transferred(points, arms, place, kind_of(type(other)), shown)
                for place, other in enumerate(colt.transfer)
            ),
        ],
        curves=[
            Curve(
                _name(arm),
                [(0, 100.0)] + [(each["round"], 100 * each["density"]) for each in rounds if each["arm"] == arm],
                {"color": f"C{place}"},
            )
            for place, arm in enumerate(arms[1:])
        ],
        x_label="rounds",
        y_label="weights kept, %",
        linear=True,
    )


def _points(colt: Colt, finished: Sequence[Finished]) -> Iterator[dict[str, Any]]:
    """Every measured network."""
    for evaluation, trained in evaluations(finished):
        yield {
            "what": "accuracy",
            "replicate": evaluation.at["replicate"],
            "arm": evaluation.at["arm"],
            "network": evaluation.at.get("control", "ticket"),
            "transfer": evaluation.at.get("transfer"),
            "density": trained.metrics["density"],
            **colt.accuracies(evaluation),
            "step": evaluation.step.key,
        }


def _rounds(finished: Sequence[Finished]) -> Iterator[dict[str, Any]]:
    """Every round of COLT, with how far its parts agreed, and every level of the chain."""
    agreed = {
        (step.at["replicate"], step.at["arm"], step.at["round"]): step.metrics
        for step in finished
        if step.kind == "intersect-masks"
    }
    for step in finished:
        place = (step.at.get("replicate"), step.at.get("arm"), step.at.get("round"))
        whole = {"what": "round", "replicate": place[0], "arm": place[1]}
        if step.kind == "fresh-head" and place in agreed:
            found = {name: agreed[place][name] for name in ("survival", "overlap", "chance", "chance_in_layers")}
            done = step.at["round"] + 1
            yield {**whole, "round": done, "density": step.metrics["density"], **found, "step": step.step.key}
        elif step.kind == "prune" and place[1] == "imp":
            done = step.at["level"] + 1
            yield {**whole, "round": done, "density": step.metrics["density"], "step": step.step.key}


def _searches(colt: Colt, finished: Sequence[Finished], rounds: Points) -> Iterator[dict[str, Any]]:
    """What it took to find each mask."""
    for replicate in range(colt.replicates):
        for arm in (*colt.partitions, "imp"):
            own = [each for each in rounds if (each["replicate"], each["arm"]) == (replicate, arm)]
            if not own:
                continue
            last = max(each["round"] for each in own)
            steps = [step for step in finished if step.at.get("replicate") == replicate and _searched(step, arm, last)]
            yield {
                "what": "search",
                "replicate": replicate,
                "arm": arm,
                "rounds": last,
                "exact_rounds": _rounds_to(1 - colt.sparsity, own),
                "sample_steps": cost_of(steps),
            }


def _rounds_to(density: float, rounds: Points) -> float:
    """Rounds to exactly this density: the last one overshoots it, and in a round the density falls by a factor."""
    falls: dict[int, float] = {0: 1.0} | {each["round"]: each["density"] for each in rounds}
    last = max(falls)
    before, after = falls[last - 1], falls[last]
    return last - 1 + math.log(before / density) / math.log(before / after)


def _searched(step: Finished, arm: str, last: int) -> bool:
    """Whether a step was needed to find the mask of an arm."""
    at = step.at
    if arm == "imp" and at.get("arm") == "dense":  # the chain begins with the dense network
        return step.kind == "train" and "transfer" not in at
    return at.get("arm") == arm and ("round" in at or at.get("level", last) < last)


def _effort(arms: Sequence[str], searches: Points, rounds: Points) -> Iterator[Section]:
    of_imp = [each["exact_rounds"] for each in searches if each["arm"] == "imp"]
    rows = []
    for arm in arms[1:]:
        took = [each for each in searches if each["arm"] == arm]
        own = [each for each in rounds if each["arm"] == arm]
        if not took:
            continue
        count = mean(each["rounds"] for each in took)
        rows.append(
            [
                _name(arm),
                f"{count:g}",
                f"{mean(each['exact_rounds'] for each in took) / mean(of_imp):.2f}" if of_imp else "",
                f"{mean(each['sample_steps'] for each in took):,.0f}",
                *(_range(own, name) for name in ("survival", "overlap", "chance", "chance_in_layers")),
            ]
        )
    if rows:
        yield Section(
            "What finding the masks took",
            ["network", "rounds", "of IMP's", "sample-steps", "survive %", "overlap %", "by chance", "in layers"],
            rows,
        )


def _notes(colt: Colt) -> Iterator[str]:
    fractions = [colt.prune.fraction or 0, *(group.fraction for group in colt.prune.groups)]
    low, high = max(0.0, 1 - colt.parts * max(fractions)), 1 - min(fractions)
    share = " to ".join(f"{100 * fraction:g}" for fraction in sorted({min(fractions), max(fractions)}))
    yield (
        f"of IMP's: rounds to a sparsity of exactly {colt.sparsity:g}, interpolated within the last; accuracies are at "
        "the densities given"
    )
    yield (
        f"in a round each of {colt.parts} networks prunes {share} % of what is left outside the output "
        f"layer, so {100 * low:g} to {100 * high:g} % of it survive; overlap: the share of what one prunes that the "
        "others prune too, beside what chance would give, anywhere in the network and in each layer by itself"
    )


def _transferred(points: Points, arms: Sequence[str], place: int, data: str, shown: Sequence[str]) -> Section:
    there = [point for point in points if point["transfer"] == place]
    return Section(
        f"The same masks on {data}",
        ["network", "kept %", *shown],
        [[_name(arm), _kept(there, arm), *(_spread(there, arm, "ticket", name) for name in shown)] for arm in arms],
    )


def _name(arm: str) -> str:
    return {"dense": "dense", "imp": "IMP"}.get(arm, f"COLT {arm}")


def _kept(points: Points, arm: str) -> str:
    densities = [point["density"] for point in points if point["arm"] == arm and point["network"] == "ticket"]
    return f"{100 * mean(densities):.1f}" if densities else ""


def _spread(points: Points, arm: str, network: str, name: str) -> str:
    """Of one network over replicates."""
    return spread([point[name] for point in points if (point["arm"], point["network"]) == (arm, network)])


def _range(rounds: Points, name: str) -> str:
    """Over all rounds, in percent."""
    values = [100 * each[name] for each in rounds if each.get(name) is not None]
    return f"{min(values):.1f}–{max(values):.1f}" if values else ""
