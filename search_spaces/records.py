"""Records of trials, as Optuna and a report look at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState, create_trial

from search_spaces.goals import Constraint, Objective, meets
from search_spaces.space import Space

STATES = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
WORDS = ("state", "because", "cause", "message", "stopped_at", "sample_steps")
"""What a told record says of a trial beside its figures, as far as it says it."""


def frozen_trial(
    space: Space,
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
    number: int,
    parameters: Mapping[str, Any],
    told: Mapping[str, Any] | None = None,
) -> FrozenTrial:
    """A trial as Optuna keeps it: running as long as nothing was told of it.

    Args:
        space: that its parameters are from.
        objectives: whose figures are its values.
        constraints: what a complete trial must meet to count.
        number: of the trial.
        parameters: by name.
        told: `state` (complete, stopped, failed), `figures` by name, `rungs` (of each the figures), and words.

    Raises:
        ValueError: a figure is missing.
    """
    known = {name: parameters[name] for name in space.order if name in parameters}
    told = told or {}
    figures = told.get("figures", {})
    complete = told.get("state") == "complete"
    wanted = [objective.figure for objective in objectives] + [bound.figure for bound in constraints]
    for name in wanted if complete else ():
        if name not in figures:
            raise ValueError(f"trial {number}: it has no figure '{name}'; found: {', '.join(figures) or 'none'}")
    on_the_way = _intermediate(told.get("rungs", {}), objectives)
    values = [figures[objective.figure] for objective in objectives] if complete else None
    if told.get("state") == "stopped" and on_the_way:
        values = [on_the_way[max(on_the_way)]]  # as Optuna has it: what it had come to
    trial = create_trial(
        state=STATES[told["state"]] if told else TrialState.RUNNING,
        values=values,
        params=known,
        distributions={name: space.parameters[name].distribution() for name in known},
        user_attrs={**{word: told[word] for word in WORDS if word in told}, **figures},
        intermediate_values=on_the_way,
        constraints={str(bound): bound.violation(figures) for bound in constraints} if complete else None,
    )
    trial.number = number
    return trial


def front_of(
    trials: Sequence[Mapping[str, Any]], objectives: Sequence[Objective], constraints: Sequence[Constraint]
) -> list[int]:
    """The complete trials that meet all constraints and that no other such trial beats.

    One objective: the best trial, the earliest of equals. Several: all that are not dominated; of trials with the same
    parameters the earliest.

    Args:
        trials: told records, by their numbers.
        objectives: what is better.
        constraints: what must be met.

    Returns:
        their places.
    """
    feasible = {
        place: trial["figures"]
        for place, trial in enumerate(trials)
        if trial["state"] == "complete" and meets(trial["figures"], constraints)
    }
    if not feasible:
        return []
    places = list(feasible)
    gains = np.array([[goal.sign * figures[goal.figure] for goal in objectives] for figures in feasible.values()])
    if len(objectives) == 1:
        return [places[int(gains[:, 0].argmax())]]
    front: list[int] = []
    for place in np.lexsort(gains.T)[::-1]:  # whatever beats a trial comes before it
        better = gains[front]
        if not np.any((better >= gains[place]).all(axis=1) & (better > gains[place]).any(axis=1)):
            front.append(int(place))
    leading: dict[str, int] = {}
    for number in sorted(places[place] for place in front):
        leading.setdefault(str(sorted(trials[number].get("parameters", {"": number}).items())), number)
    return list(leading.values())


def study_of(
    trials: Sequence[Mapping[str, Any]],
    space: Space,
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
) -> optuna.Study:
    """A study in memory with these told trials, to draw."""
    study = optuna.create_study(directions=[objective.direction for objective in objectives])
    with catch_warnings():
        simplefilter("ignore", ExperimentalWarning)  # for those who read Optuna's release notes
        study.set_metric_names([objective.figure for objective in objectives])
    study.add_trials(
        frozen_trial(space, objectives, constraints, trial["number"], trial["parameters"], trial) for trial in trials
    )
    return study


def _intermediate(rungs: Mapping[str, Mapping[str, float]], objectives: Sequence[Objective]) -> dict[int, float]:
    """By the place of the rung; Optuna knows none of several objectives."""
    if len(objectives) > 1:
        return {}
    name = objectives[0].figure
    rising = sorted(rungs, key=float)
    return {place: rungs[rung][name] for place, rung in enumerate(rising) if name in rungs[rung]}
