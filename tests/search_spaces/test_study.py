"""Studies: results told, trials looked at, fronts."""

import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from search_spaces.goals import Constraint, Objective
from search_spaces.samplers import Random
from search_spaces.study import Study
from tests.search_spaces.studies import BOUND, CONDITIONAL, FINITE, NUMBERS, ONE, TWO, go_on, open_study, quick, result

GRID = [0.0, 0.25, 0.5, 0.75, 1.0]


def study_of(
    figures: list[dict[str, float]], objectives: tuple[Objective, ...], bounds: tuple[Constraint, ...]
) -> Study:
    study = Study("toy", NUMBERS, Random(), objectives, bounds)
    for number, one in enumerate(figures):
        study.replay({"levels": 3, "train.epsilon": 0.1})
        study.tell(number, {"state": "complete", "figures": one})
    return study


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.fixed_dictionaries({name: st.sampled_from(GRID) for name in ("robust", "size", "drop")}), max_size=12)
)
def test_the_front_is_all_that_no_feasible_trial_beats(figures: list[dict[str, float]]) -> None:
    study = study_of(figures, TWO, (Constraint(figure="drop", at_most=0.5),))

    def beats(one: dict[str, float], other: dict[str, float]) -> bool:
        as_good = one["robust"] >= other["robust"] and one["size"] <= other["size"]
        return as_good and (one["robust"] > other["robust"] or one["size"] < other["size"])

    feasible = [number for number, one in enumerate(figures) if one["drop"] <= 0.5]
    assert study.front() == [
        number for number in feasible if not any(beats(figures[other], figures[number]) for other in feasible)
    ]


def test_the_best_trial_is_the_earliest_of_equals_that_meets_all_constraints() -> None:
    figures = [
        {"size": size, "drop": drop} for size, drop in [(0.1, 0.9), (0.4, 0.1), (0.3, 0.2), (0.3, 0.0), (0.5, 0.0)]
    ]
    study = study_of(figures, (Objective(minimise="size"),), (Constraint(figure="drop", at_most=0.5),))
    assert study.front() == [2]


def test_nothing_leads_where_nothing_is_feasible() -> None:
    assert study_of([{"robust": 1.0, "size": 0.9}], ONE, BOUND).front() == []
    assert study_of([], TWO, ()).front() == []


def test_stopped_and_failed_trials_never_lead() -> None:
    study = open_study("random", FINITE, TWO)
    go_on(study, 20, window=1)
    assert not {number for number in study.front() if number % 7 == 6 or number % 5 == 4}


def test_a_trial_can_be_looked_at_in_every_state() -> None:
    study = open_study("tpe", CONDITIONAL, ONE)
    asked = go_on(study, 8, window=1)
    states = [study.frozen(number).state for number in range(8)]
    C, P, F, R = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING
    assert states == [C, C, C, C, P, C, F, R]
    assert [study.frozen(number).params for number in range(8)] == asked
    assert study.frozen(6).user_attrs == {"state": "failed", "cause": "oom", "message": "out of memory"}
    stopped = study.frozen(4)
    assert stopped.user_attrs["because"] == "below the median"
    assert stopped.intermediate_values == {0: stopped.value}
    complete = study.frozen(3)
    told = result(3, asked[3])["figures"]
    assert (complete.number, complete.value) == (3, told["robust"])
    assert complete.constraints == {"size <= 0.8": told["size"] - 0.8}
    assert complete.user_attrs == {"state": "complete", **told}
    assert complete.distributions.keys() == asked[3].keys()


def test_a_look_at_a_trial_shows_nothing_that_a_sampler_keeps() -> None:
    study = open_study("cma-es", NUMBERS, ONE)
    go_on(study, 16, window=1)
    assert {name.split(":")[0] for number in range(15) for name in study.frozen(number).system_attrs} == {"constraints"}


def test_several_objectives_have_no_intermediate_values_but_their_trials_can_be_stopped() -> None:
    study = open_study("tpe", CONDITIONAL, TWO)
    go_on(study, 16, window=1)
    assert study.frozen(4).state is TrialState.PRUNED
    assert study.frozen(4).intermediate_values == {}
    told = study.frozen(3)
    assert told.values == [told.user_attrs["robust"], told.user_attrs["size"]]


def test_stopped_trials_count_for_what_is_asked_next() -> None:
    def asked(because: str) -> list[dict[str, Any]]:
        study = Study("toy", NUMBERS, quick("tpe"), ONE)
        parameters: list[dict[str, Any]] = []
        for number in range(12):
            parameters.append(study.ask() or {})
            worth = parameters[-1]["levels"] * (1.0 if because == "many" else -1.0)
            study.tell(number, {"state": "stopped", "rungs": {"1": {"robust": worth}}, "stopped_at": 1})
        return parameters

    assert asked("many") != asked("few")


def test_results_are_told_in_order_and_once() -> None:
    study = open_study("random", NUMBERS, ONE)
    study.ask()
    failed = {"state": "failed", "cause": "user", "message": "no"}
    with pytest.raises(ValueError, match="trial 1 is told, but it is trial 0's turn of 1 asked"):
        study.tell(1, failed)
    study.tell(0, failed)
    for number in (0, 1):
        with pytest.raises(ValueError, match=f"trial {number} is told, but it is trial 1's turn of 1 asked"):
            study.tell(number, failed)


@pytest.mark.parametrize(("figures", "name"), [({"size": 0.5}, "robust"), ({"robust": 0.5}, "size")])
def test_a_figure_that_an_objective_or_a_constraint_needs_is_missed(figures: dict[str, float], name: str) -> None:
    study = open_study("random", NUMBERS, ONE)
    study.ask()
    with pytest.raises(ValueError, match=f"trial 0: it has no figure '{name}'; found: "):
        study.tell(0, {"state": "complete", "figures": figures})


def test_the_front_of_two_thousand_trials_that_all_lead_is_whole() -> None:
    angles = [math.pi / 2 * n / 2000 for n in range(2000)]
    study = study_of([{"robust": math.sin(angle), "size": 1 - math.cos(angle)} for angle in angles], TWO, ())
    assert study.front() == list(range(2000))


def test_another_process_asks_the_same() -> None:
    script = (
        "from tests.search_spaces.studies import *\n"
        "for kind in ('tpe', 'nsga2', 'qmc', 'random'):\n"
        "    for goals in (ONE, TWO): print(go_on(open_study(kind, CONDITIONAL, goals), 20, window=3))\n"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    assert len(printed.pop().splitlines()) == 8


def test_the_first_trials_are_those_given_and_the_sampler_goes_on_from_there() -> None:
    start = [{"levels": 5, "train.epsilon": 0.1}, {"levels": 30, "train.epsilon": 0.02}]
    for kind in ("tpe", "nsga2", "grid"):
        space = FINITE if kind == "grid" else NUMBERS
        begun = [{"levels": 2, "objective": "pgd"}] if kind == "grid" else start
        study = Study("toy", space, quick(kind), ONE, start=begun)
        asked = go_on(study, 8, window=2)
        assert asked[: len(begun)] == begun
        again = Study("toy", space, quick(kind), ONE, start=begun)
        assert go_on(again, 8, window=2, known=asked[:5]) == asked
