"""Interrupted studies ask what uninterrupted ones ask."""

import json
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import pytest

from search_spaces.goals import Objective
from search_spaces.samplers import Random
from search_spaces.space import Space
from search_spaces.study import Study
from tests.search_spaces.studies import (
    CONDITIONAL,
    FINITE,
    NOISE,
    NUMBERS,
    ONE,
    TWO,
    go_on,
    open_study,
    quick,
    result,
)

CASES = [
    *[(kind, CONDITIONAL, goals) for kind in ("tpe", "nsga2", "nsga3", "qmc", "random") for goals in (ONE, TWO)],
    *[("partially-fixed", CONDITIONAL, goals) for goals in (ONE, TWO)],
    *[("grid", FINITE, goals) for goals in (ONE, TWO)],
    ("gp", NUMBERS, ONE),
    ("gp", CONDITIONAL, TWO),
    ("cma-es", NUMBERS, ONE),
]
NAMES = [f"{kind}-{len(goals)}" for kind, _, goals in CASES]


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize(("kind", "space", "goals"), CASES, ids=NAMES)
def test_an_interrupted_study_asks_what_an_uninterrupted_one_asks(
    kind: str, space: Space, goals: tuple[Objective, ...], window: int
) -> None:
    trials = 7 if kind == "gp" else 24
    whole = go_on(open_study(kind, space, goals), trials, window, noise=next(NOISE))
    for stop in (trials - 2,) if kind == "gp" else (1, 7, trials - 2):
        ledger = json.loads(json.dumps(whole[:stop], sort_keys=True))
        again = go_on(open_study(kind, space, goals), trials, window, known=ledger, noise=next(NOISE))
        assert again == whole, f"interrupted after {stop}"


@pytest.mark.parametrize(("kind", "space", "goals"), CASES, ids=NAMES)
def test_trials_that_run_side_by_side_differ(kind: str, space: Space, goals: tuple[Objective, ...]) -> None:
    asked = go_on(open_study(kind, space, goals), 7 if kind == "gp" else 12, window=4)
    for number in range(len(asked) - 4):
        beside = [json.dumps(parameters) for parameters in asked[number : number + 4]]
        assert len(set(beside)) == 4


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "qmc", "grid", "random"])
def test_another_key_asks_for_other_parameters(kind: str) -> None:
    one = go_on(open_study(kind, FINITE, ONE, key="one"), 6, window=1)
    other = go_on(open_study(kind, FINITE, ONE, key="other"), 6, window=1)
    assert one != other


@pytest.mark.parametrize("kind", ["tpe", "gp", "nsga2", "cma-es"])
def test_results_change_what_is_asked(kind: str) -> None:
    """Or the claims on interruption would hold for any sampler that drew at random."""
    asked = {}
    for figure in ("robust", "size"):
        asked[figure] = go_on(
            open_study(kind, NUMBERS, (Objective(maximise=figure),)), 6 if kind == "gp" else 16, window=1
        )
    assert asked["robust"][0] == asked["size"][0]
    assert asked["robust"] != asked["size"]


def test_a_running_trial_changes_what_tpe_asks_next() -> None:
    def next_after(running: float) -> object:
        study = open_study("tpe", NUMBERS, ONE)
        go_on(study, 12, window=1)
        study.replay({"train.epsilon": running, "levels": 3})
        return study.ask()

    assert next_after(0.02) != next_after(0.29)


@pytest.mark.parametrize("kind", ["nsga2", "cma-es"])
def test_a_replay_that_comes_out_otherwise_names_the_optuna_version(kind: str) -> None:
    study = open_study(kind, NUMBERS, ONE)
    with pytest.raises(ValueError, match=r"trial 0 was asked with .*999.* but now Optuna \d.*version"):
        study.replay({"levels": 999, "train.epsilon": 0.1})


def test_two_thousand_trials_reopen_in_a_moment() -> None:
    first = Study("many", CONDITIONAL, Random(), TWO)
    asked = [first.ask() or {} for _ in range(2000)]
    again = Study("many", CONDITIONAL, quick("tpe"), TWO)
    began = perf_counter()
    for number, parameters in enumerate(asked):
        again.replay(parameters)
        again.tell(number, result(number, parameters))
    assert perf_counter() - began < 3.0  # 0.5 s on a quiet core
    assert again.asked == 2000


def test_what_a_running_trial_might_have_had_is_forgotten() -> None:
    """A parameter of all finished trials is drawn for each that runs, and left out where its condition fails."""
    finished = [{"levels": n, "share": 0.5, "objective": "trades", "objective.beta": 1.0 + n} for n in range(2, 8)]

    def reopened(key: str, running: Sequence[Mapping[str, Any]]) -> Study:
        study = open_study("tpe", CONDITIONAL, ONE, key, ())
        for number, parameters in enumerate(finished):
            study.replay(parameters)
            study.tell(number, {"state": "complete", "figures": {"robust": number % 4}})
        for parameters in running:
            study.replay(parameters)
        return study

    left_out = 0
    for key in map(str, range(8)):
        whole = reopened(key, [])
        running: list[dict[str, Any]] = []
        for _ in range(5):
            running.append(whole.ask() or {})
            assert reopened(key, running[:-1]).ask() == running[-1]
        left_out += sum(parameters["objective"] == "pgd" for parameters in running[:-1])
    assert left_out
