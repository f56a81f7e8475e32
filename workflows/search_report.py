"""The closing report of a search: its front, what became of the trials, and what sharing saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import yaml

from cluster.runs import Finished
from search_spaces.goals import meets
from search_spaces.records import front_of, study_of
from workflows.report import Curve, Page, Report

if TYPE_CHECKING:
    from workflows.search import Search


LISTED = 3
"""Trials that were stopped, or failed, of which the report says why."""
UNITS = {"latency": " (s per image)", "size": " (weights)"}


def report_on(search: Search, finished: Sequence[Finished]) -> Report:
    """The front so far; with figures on test data once the search has closed."""
    trials = told_trials(search, finished)
    closings = _notes_of(search, finished, "front")
    closed = _closing(closings, len(trials))
    lead = search.objectives[0]
    front = [trials[place] for place in front_of(trials, search.objectives, search.constraints)]
    front.sort(key=lambda trial: -lead.sign * trial["figures"][lead.figure])
    tests = {entry["number"]: entry["test"] for entry in closed.get("front", ()) if "test" in entry}
    figures = _shown_figures(search)
    tested = [
        name
        for name in figures
        if any(tests.get(trial["number"], {}).get(name) != trial["figures"][name] for trial in front)
    ]
    varied = sorted({name for trial in front for name in trial["parameters"]})
    return Report(
        title=_title(search),
        columns=[
            "trial",
            *_shortened(varied),
            *(name + UNITS.get(name, "") for name in figures),
            *([f"{name} test" for name in tested] if tests else []),
        ],
        rows=[
            [
                str(trial["number"]),
                *(_word(trial["parameters"].get(name, "")) for name in varied),
                *(_word(trial["figures"][name]) for name in figures),
                *([_word(tests.get(trial["number"], {}).get(name, "failed")) for name in tested] if tests else []),
            ]
            for trial in front
        ],
        results=[_result(search, trial, trial in front, tests) for trial in trials],
        notes=_notes(search, trials, closed, [_task(step)["number"] for step in closings]),
        curves=_curves(search, trials, front),
        x_label="trial" if len(search.objectives) == 1 else search.objectives[-1].figure,
        y_label=lead.figure,
        linear=True,
        replaces="trial-*.yaml",
        pages={
            "study.html": Page(partial(_page, search, trials), f"{search.key} {len(trials)}"),
            **{f"trial-{trial['number']:04d}.yaml": Page(partial(exported, search, trial)) for trial in front},
        },
    )


def told_trials(search: Search, finished: Sequence[Finished]) -> list[Mapping[str, Any]]:
    """What became of the trials of this study, by number; of what several versions of the code found, the newest."""
    notes = _notes_of(search, finished, "trial")
    return [note.metrics for note in sorted(notes, key=lambda note: int(note.metrics["number"]))]


def computed(trials: Iterable[Mapping[str, Any]]) -> int:
    """Sample-steps of all steps of these trials, each counted once."""
    steps: dict[str, int] = {}
    for trial in trials:
        for key, cost in trial["steps"].items():
            steps[key] = max(cost, steps.get(key, 0))
    return sum(steps.values())


def _notes_of(search: Search, finished: Sequence[Finished], kind: str) -> list[Finished]:
    own = [step for step in finished if step.kind in ("trial", "front") and _task(step)["study"] == search.key]
    if not own:
        return []
    newest = max(own, key=_published)
    return [step for step in own if step.kind == kind and _task(step).get("code") == _task(newest).get("code")]


def _published(step: Finished) -> float:
    return float(step.step.manifest["published"])


def _task(step: Finished) -> Mapping[str, Any]:
    task: Mapping[str, Any] = step.step.manifest["task"]
    return task


def exported(search: Search, trial: Mapping[str, Any]) -> bytes:
    """The recipe of a trial: `hedgerow run` finds its very steps."""
    figures = ", ".join(f"{name} {_word(value)}" for name, value in trial.get("figures", {}).items())
    head = (
        f"# Trial {trial['number']} of study {search.key[:12]}: {figures or trial['state']}.\n"
        "# On validation data, as it was searched by; on test data: --set split=test\n"
    )
    return (head + yaml.safe_dump(search.content(trial["parameters"]), sort_keys=False, allow_unicode=True)).encode()


def _closing(closings: Sequence[Finished], count: int) -> Mapping[str, Any]:
    """What the search put down when it closed with so many trials; nothing while it goes on."""
    own = [step for step in closings if _task(step)["number"] == count]
    return max(own, key=_published).metrics if own else {}


def _result(
    search: Search, trial: Mapping[str, Any], on_front: bool, tests: Mapping[int, Mapping[str, float]]
) -> dict[str, Any]:
    shown = ("number", "state", "parameters", "figures", "stopped_at", "because", "cause", "message", "sample_steps")
    result = {name: trial[name] for name in shown if name in trial}
    if "figures" in trial:
        result["feasible"] = meets(trial["figures"], search.constraints)
        result["front"] = on_front
    if trial["number"] in tests:
        result["test"] = dict(tests[trial["number"]])
    return result


def _notes(
    search: Search, trials: Sequence[Mapping[str, Any]], closed: Mapping[str, Any], closings: Sequence[int]
) -> list[str]:
    states = Counter(trial["state"] for trial in trials)
    notes = [f"{len(trials)} trials: " + ", ".join(f"{count} {state}" for state, count in states.items())]
    alone, together = sum(trial["sample_steps"] for trial in trials), computed(trials)
    if alone:
        notes.append(
            f"{together:,} sample-steps of training; the trials one by one are {alone:,}: "
            f"sharing saved {alone - together:,} ({(alone - together) / alone:.0%})"
        )
    notes += _constraint_notes(search, [trial for trial in trials if "figures" in trial])
    if "audit" in closed:
        notes.append(_audit_note(closed["audit"], "best" if len(search.objectives) == 1 else "on the front"))
    for state, why in (("stopped", _why_stopped), ("failed", _why_failed)):
        found = [trial for trial in trials if trial["state"] == state]
        notes += [why(trial) for trial in found[:LISTED]]
        notes += [f"{len(found) - LISTED} more {state}: results.json"] if len(found) > LISTED else []
    notes.append(_test_note(sorted(set(closings))))
    return notes


def _constraint_notes(search: Search, complete: Sequence[Mapping[str, Any]]) -> list[str]:
    violated = [
        max((bound.violation(trial["figures"]) for bound in search.constraints), default=0) for trial in complete
    ]
    outside = sum(violation > 0 for violation in violated)
    bounds = " and ".join(map(str, search.constraints))
    if outside and outside == len(complete):
        nearest = complete[violated.index(min(violated))]
        figures = ", ".join(f"{bound.figure} {_word(nearest['figures'][bound.figure])}" for bound in search.constraints)
        return [f"no trial keeps to {bounds}; the nearest is trial {nearest['number']}: {figures}"]
    return [f"{outside} of the complete trials do not keep to {bounds}"] if outside else []


def _audit_note(audit: Mapping[str, Any], what: str) -> str:
    return (
        f"{audit['wrong']} of {audit['of']} stopped trials that were run to their end would have been {what} "
        f"(95 % interval of the rate of wrong stops {audit['low']:.0%} to {audit['high']:.0%})"
    )


def _why_stopped(trial: Mapping[str, Any]) -> str:
    return f"trial {trial['number']} was stopped at {trial['stopped_at']}: {trial['because']}"


def _why_failed(trial: Mapping[str, Any]) -> str:
    return f"trial {trial['number']} failed ({trial['cause']}): {trial['message']}"


def _test_note(closings: Sequence[int]) -> str:
    said = "searched by figures on validation data"
    if len(closings) > 1:
        times = ", ".join(map(str, closings[:-1])) + f" and {closings[-1]}"
        return f"{said}; test data were looked at {len(closings)} times, for the fronts after {times} trials"
    return f"{said}; test data are looked at for the front alone, when the search closes"


def _shown_figures(search: Search) -> list[str]:
    names = [objective.figure for objective in search.objectives]
    names += [constraint.figure for constraint in search.constraints]
    return list(dict.fromkeys(names))


def _curves(search: Search, trials: Sequence[Mapping[str, Any]], front: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Of one objective its course; of several the first over the last."""
    y, x = search.objectives[0], search.objectives[-1]
    alone = len(search.objectives) == 1

    def points(shown: Iterable[Mapping[str, Any]]) -> list[tuple[float, float]]:
        return [(trial["number"] if alone else _reached(trial)[x.figure], _reached(trial)[y.figure]) for trial in shown]

    def states(state: str) -> Iterable[Mapping[str, Any]]:
        return (trial for trial in trials if trial["state"] == state)

    # Between two trials of a front there is none: what is known is a staircase, drawn from the right to the left.
    stairs = {"color": "C2", "drawstyle": "steps-post" if x.maximise else "steps-pre"}
    return [
        Curve("trials", points(states("complete")), {"marker": "o", "markersize": 5, "color": "C7"}, scattered=True),
        Curve("stopped, at their rung", points(states("stopped")), {"marker": "x", "color": "C3"}, scattered=True),
        Curve("best" if alone else "front", points(front), {"marker": "o", "color": "C2"}, scattered=True),
        *([Curve("", points(front), stairs)] if len(search.objectives) == 2 else []),
    ]


def _differs(trial: Mapping[str, Any], tests: Mapping[int, Mapping[str, float]], name: str) -> bool:
    """Whether a figure is another one on test data; sparsity, say, is not."""
    return bool(tests.get(trial["number"], {}).get(name) != trial["figures"][name])


def _reached(trial: Mapping[str, Any]) -> Mapping[str, float]:
    """The figures of a trial, at its end or where it was stopped."""
    figures: Mapping[str, float] = trial["figures"] if "figures" in trial else trial["rungs"][trial["stopped_at"]]
    return figures


def _page(search: Search, trials: Sequence[Mapping[str, Any]]) -> bytes:
    from search_spaces.page import study_page  # plotly takes a moment, and most commands draw nothing

    title = f"{_title(search)} ({search.key[:12]})"
    return study_page(study_of(trials, search.space, search.objectives, search.constraints), title).encode()


def _title(search: Search) -> str:
    aims = (f"{'maximise' if goal.maximise else 'minimise'} {goal.figure}" for goal in search.objectives)
    return "Search to " + " and ".join(aims)


def _shortened(paths: Sequence[str]) -> list[str]:
    """The last part of each dotted path, and as many before it as tell it from the others."""
    parts = [path.split(".") for path in paths]
    names = []
    for own in parts:
        length = 1
        while length < len(own) and sum(other[-length:] == own[-length:] for other in parts) > 1:
            length += 1
        names.append(".".join(own[-length:]))
    return names


def _word(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
