"""Toy studies: results that follow from the parameters, and a driver that keeps a window of trials running."""

import random
import sys
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np

from search_spaces.goals import Constraint, Objective
from search_spaces.samplers import MEMBERS, SamplerModel
from search_spaces.space import Space
from search_spaces.study import Study

NUMBERS = Space.load({"parameters": {"levels": {"int": [2, 30]}, "train.epsilon": {"float": [0.01, 0.3], "log": True}}})
CONDITIONAL = Space.load(
    {
        "parameters": {
            "levels": {"int": [2, 8]},
            "share": {"float": [0.0, 1.0], "step": 0.05},
            "objective": {"choice": {"pgd": {"kind": "pgd"}, "trades": {"kind": "trades"}}},
            "objective.beta": {"float": [1, 8], "when": {"objective": "trades"}},
            "objective.steps": {"int": [1, 64], "log": True, "when": {"objective": ["pgd"]}},
        }
    }
)
FINITE = Space.load(
    {
        "parameters": {
            "levels": {"int": [2, 8]},
            "objective": {"choice": ["pgd", "trades"]},
            "objective.beta": {"float": [1, 2], "step": 0.1, "when": {"objective": "trades"}},
        }
    }
)
ONE = (Objective(maximise="robust"),)
TWO = (Objective(maximise="robust"), Objective(minimise="size"))
BOUND = (Constraint(figure="size", at_most=0.8),)
KINDS = {str(member.model_fields["kind"].default): member for member in MEMBERS}


def quick(kind: str) -> SamplerModel:
    """The sampler with so few trials at random that a short study reaches its model."""
    small: dict[str, dict[str, Any]] = {
        "tpe": {"startup": 4},
        "gp": {"startup": 2},
        "nsga2": {"population": 4},
        "nsga3": {"population": 4},
        "cma-es": {"population": 4},
        "partially-fixed": {"fixed": {"levels": 4}, "sampler": {"kind": "tpe", "startup": 4}},
    }
    return KINDS[kind].model_validate({"kind": kind, **small.get(kind, {})})


def result(number: int, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What became of a trial: every seventh failed, every fifth was stopped at its first rung."""
    values = [float(value) for value in parameters.values() if not isinstance(value, str)]
    robust = 1.0 - sum((value - 3.0) ** 2 for value in values) / 100 - ("trades" in parameters.values()) / 10
    if number % 7 == 6:
        return {"number": number, "state": "failed", "cause": "oom", "message": "out of memory"}
    rungs = {"1": {"robust": robust / 2}}
    if number % 5 == 4:
        return {"number": number, "state": "stopped", "rungs": rungs, "stopped_at": 1, "because": "below the median"}
    size = parameters["levels"] / 8 if parameters["levels"] <= 8 else parameters["levels"] / 30
    return {"number": number, "state": "complete", "figures": {"robust": robust, "size": size}, "rungs": rungs}


def open_study(
    kind: str,
    space: Space,
    objectives: Sequence[Objective],
    key: str = "toy",
    constraints: Sequence[Constraint] = BOUND,
) -> Study:
    return Study(key, space, quick(kind), objectives, constraints)


def go_on(
    study: Study, trials: int, window: int, known: Sequence[Mapping[str, Any]] = (), noise: int = 0
) -> list[dict[str, Any]]:
    """Asks until there are `trials`, of which at most `window` run at any time; the known ones are replayed."""
    asked: list[dict[str, Any]] = []
    for number in range(trials):
        disturb_global_generators(noise + number)
        if number >= window:
            study.tell(number - window, result(number - window, asked[number - window]))
        if number < len(known):
            study.replay(known[number])
            asked.append(dict(known[number]))
            continue
        parameters = study.ask()
        if parameters is None:
            break
        asked.append(parameters)
    return asked


def disturb_global_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


NOISE = count(1000, 1000)
"""Another state of the global generators each time."""
