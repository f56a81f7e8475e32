"""Stopping rules: whom they stop, and how often they are wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import comb
from statistics import NormalDist
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from search_spaces.goals import Constraint, Objective
from tasks.component import members
from tasks.measuring.compare import adjusted_wald
from tasks.measuring.intervals import clopper_pearson
from tasks.seeds import generator
from workflows.figures import Figures
from workflows.stopping import Peer, Stopping, wrong_stops
from workflows.stopping.dominated import Dominated
from workflows.stopping.halving import Halving
from workflows.stopping.median import Median

ROBUST = Objective(maximise="robust@0.1")
CLEAN = Objective(maximise="clean")
SPARSITY = Objective(maximise="sparsity")
COST = Objective(minimise="sample-steps")
COMMON: dict[str, Any] = {"field": "levels", "rungs": (1, 3), "warm_up": 1}


def peers(*values: float, figure: str = "robust@0.1", rung: str = "1") -> list[Peer]:
    return [Peer(number, {rung: Figures({figure: value})}, None, on_front=False) for number, value in enumerate(values)]


def at(value: float, figure: str = "robust@0.1") -> Figures:
    return Figures({figure: value})


def measured(counted: Mapping[str, float] | None = None, **outcomes: torch.Tensor) -> Figures:
    """Figures from outcomes: `robust` stands for `robust@0.1`."""
    named = {"robust@0.1" if name == "robust" else name: right for name, right in outcomes.items()}
    return Figures({**(counted or {}), **{name: right.double().mean().item() for name, right in named.items()}}, named)


def right(count: int, of: int = 200) -> torch.Tensor:
    """The first so many of the examples are right."""
    return torch.arange(of) < count


def on_front(figures: Figures, number: int = 7, end: Mapping[str, float] | None = None, rung: str = "1") -> Peer:
    return Peer(number, {rung: figures}, dict(figures.values) if end is None else end, on_front=True)


def test_the_rules_are_members_of_a_family_and_keep_their_rungs_as_they_were_given() -> None:
    assert list(members(Stopping)) == ["dominated", "halving", "median"]
    content = {"kind": "halving", "field": "train.stop_at", "rungs": [1, 2.5, 40], "reduction": 2}
    rule = TypeAdapter(Stopping).validate_python(content)
    assert [str(rung) for rung in rule.rungs] == ["1", "2.5", "40"]
    assert json.loads(json.dumps(rule.identity())) == {**content, "rungs": [1, 2.5, 40]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rungs": (3, 1)}, "rungs must rise, but 3 is followed by 1"),
        ({"rungs": (2, 2)}, "rungs must rise"),
        ({"rungs": ()}, "at least 1 item"),
        ({"warm_up": 0}, "greater than or equal to 1"),
        ({"audit": -1}, "greater than or equal to 0"),
        ({"reduction": 1}, "greater than or equal to 2"),
        ({"confidence": 1}, "less than 1"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    kind = Halving if "reduction" in change else Dominated
    with pytest.raises(ValidationError, match=message):
        kind.model_validate({**COMMON, **change})


def test_rules_for_one_objective_refuse_two() -> None:
    for rule in (Median(**COMMON), Halving(**COMMON)):
        rule.check(1)
        with pytest.raises(ValueError, match=rf"^{rule.kind} compares trials by one objective, and here are 2;"):
            rule.check(2)
    Dominated(**COMMON).check(1)
    Dominated(**COMMON).check(3)


@pytest.mark.parametrize(
    ("objective", "own", "others", "stopped"),
    [
        (ROBUST, 0.39, (0.2, 0.4, 0.6), True),
        (ROBUST, 0.40, (0.2, 0.4, 0.6), False),
        (ROBUST, 0.49, (0.2, 0.4, 0.6, 0.8), True),
        (ROBUST, 0.51, (0.2, 0.4, 0.6, 0.8), False),
        (COST, 41, (20, 40, 60), True),
        (COST, 39, (20, 40, 60), False),
    ],
)
def test_worse_than_the_median_is_stopped(
    objective: Objective, own: float, others: tuple[float, ...], stopped: bool
) -> None:
    name = objective.figure
    why = Median(**COMMON).objection([objective], 0, at(own, name), peers(*others, figure=name), {})
    assert (why is not None) == stopped


def test_the_reason_says_what_was_compared_where() -> None:
    why = Median(**COMMON).objection([ROBUST], 1, at(0.3125), peers(0.2, 0.4, 0.6, rung="3"), {})
    assert why == "robust@0.1 is 0.3125 at levels 3, and the median of 3 trials there is 0.4"
    why = Halving(**COMMON).objection([ROBUST], 0, at(0.3), peers(0.2, 0.4, 0.6, 0.7, 0.1), {})
    assert why == "robust@0.1 is 0.3 at levels 1, number 4 of 6 trials there, and the best 2 go on"


@pytest.mark.parametrize("kind", [Median, Halving, Dominated])
def test_nobody_is_stopped_before_enough_others_have_reached_the_rung(kind: type[Stopping]) -> None:
    rule = kind(**{**COMMON, "warm_up": 4})
    strong, weak = measured(robust=right(190)), measured(robust=right(20))
    others = [on_front(strong, number) for number in range(4)]
    elsewhere = [on_front(strong, 9, rung="3")]
    assert rule.objection([ROBUST], 0, weak, others[:3] + elsewhere, {}) is None
    assert rule.objection([ROBUST], 0, weak, others, {}) is not None
    assert rule.objection([ROBUST], 1, weak, others, {}) is None, "another rung"


@pytest.mark.parametrize(("reduction", "best"), [(2, 5), (3, 3), (4, 2), (20, 1)])
def test_the_best_share_goes_on(reduction: int, best: int) -> None:
    """Ten trials with different values; each is judged by what the other nine came to."""
    rule = Halving(**COMMON, reduction=reduction)
    for sign, objective in ((1, ROBUST), (-1, COST)):
        values = [sign * number / 10 for number in range(10)]
        gone_on = [
            value
            for value in values
            if rule.objection(
                [objective],
                0,
                at(value, objective.figure),
                peers(*(other for other in values if other != value), figure=objective.figure),
                {},
            )
            is None
        ]
        assert gone_on == values[-best:]


def test_of_equal_trials_all_go_on() -> None:
    assert Halving(**COMMON).objection([ROBUST], 0, at(0.5), peers(*[0.5] * 9), {}) is None
    assert Median(**COMMON).objection([ROBUST], 0, at(0.5), peers(*[0.5] * 9), {}) is None
    same = measured(robust=right(100))
    assert Dominated(**COMMON).objection([ROBUST], 0, same, [on_front(same)], {}) is None


WEAK, STRONG = measured({"sparsity": 0.9}, robust=right(100)), measured({"sparsity": 0.9}, robust=right(130))


def test_worse_in_everything_beyond_chance_is_stopped_and_told_by_whom() -> None:
    why = Dominated(**COMMON).objection([ROBUST, SPARSITY], 0, WEAK, [on_front(STRONG)], {})
    assert why is not None
    assert why.startswith("trial 7 was better at levels 1: robust@0.1 0.5 against 0.65 (worse by 0.1")
    assert why.endswith("sparsity 0.9 against 0.9")


def test_only_the_front_stops_a_trial() -> None:
    behind = Peer(7, {"1": STRONG}, dict(STRONG.values), on_front=False)
    assert Dominated(**COMMON).objection([ROBUST, SPARSITY], 0, WEAK, [behind], {}) is None


def test_a_trial_that_is_ahead_in_one_objective_goes_on() -> None:
    rule = Dominated(**COMMON)
    sparser = Figures({**WEAK.values, "sparsity": 0.95}, WEAK.outcomes)
    assert rule.objection([ROBUST, SPARSITY], 0, sparser, [on_front(STRONG)], {}) is None
    both = measured(robust=right(100), clean=right(150))
    rival = on_front(measured(robust=right(130), clean=right(150)))
    assert rule.objection([ROBUST], 0, both, [rival], {}) is not None
    assert rule.objection([ROBUST, CLEAN], 0, both, [rival], {}) is None, "clean accuracy is not worse"


def test_what_is_known_of_the_finished_trial_counts_more_than_the_rung() -> None:
    rule = Dominated(**COMMON)
    rival = on_front(STRONG, end={"sparsity": 0.95})
    denser_now = Figures({**WEAK.values, "sparsity": 0.5}, WEAK.outcomes)
    sparser_now = Figures({**WEAK.values, "sparsity": 0.99}, WEAK.outcomes)
    assert rule.objection([ROBUST, SPARSITY], 0, denser_now, [rival], {}) is not None
    assert rule.objection([ROBUST, SPARSITY], 0, denser_now, [rival], {"sparsity": 0.98}) is None
    assert rule.objection([ROBUST, SPARSITY], 0, sparser_now, [rival], {}) is None
    why = rule.objection([ROBUST, SPARSITY], 0, sparser_now, [rival], {"sparsity": 0.9})
    assert why is not None
    assert why.endswith("sparsity 0.9 against 0.95 in the end")


def test_without_accuracies_something_must_be_worse() -> None:
    rule = Dominated(**COMMON)
    own, dearer = Figures({"sparsity": 0.9, "sample-steps": 50}), Figures({"sparsity": 0.9, "sample-steps": 60})
    assert rule.objection([SPARSITY, COST], 0, own, [on_front(own)], {}) is None
    assert rule.objection([SPARSITY, COST], 0, own, [on_front(dearer)], {}) is None
    assert rule.objection([SPARSITY, COST], 0, dearer, [on_front(own)], {}) is not None


def test_an_accuracy_to_be_lowered_is_compared_the_other_way() -> None:
    rule, lowered = Dominated(**COMMON), Objective(minimise="robust@0.1")
    assert rule.objection([lowered], 0, WEAK, [on_front(STRONG)], {}) is None
    assert rule.objection([lowered], 0, STRONG, [on_front(WEAK)], {}) is not None


def test_a_margin_is_what_another_seed_may_do() -> None:
    """Thirty of 200 examples apart, all one way: worse by 0.11 at least."""
    for margin, stopped in ((0.05, True), (0.1, True), (0.12, False)):
        why = Dominated(**COMMON, margin=margin).objection([ROBUST], 0, WEAK, [on_front(STRONG)], {})
        assert (why is not None) == stopped


def test_outcomes_of_other_examples_are_refused() -> None:
    other = on_front(measured(robust=right(130, 300)))
    with pytest.raises(ValueError, match=r"robust@0\.1 was measured on 200 and on 300 examples"):
        Dominated(**COMMON).objection([ROBUST], 0, measured(robust=right(100)), [other], {})


def pair(rounds: int, examples: int, apart: float, behind: float, *purpose: int | str) -> tuple[Any, Any]:
    """Outcomes (rounds, examples) of trial and peer: so large a share differs, and the trial is so far behind."""
    chance = torch.rand(rounds, examples, generator=generator("stopping", *purpose), dtype=torch.float64)
    only_trial, only_peer = (apart - behind) / 2, (apart + behind) / 2
    both = (1 - apart) * 0.6
    return chance < both + only_trial, (chance < both) | (chance >= 1 - only_peer)


def stops(rounds: int, examples: int, apart: float, behind: float, **fields: Any) -> float:
    rule = Dominated(**COMMON, **fields)
    trials, rivals = pair(rounds, examples, apart, behind, examples)
    stopped = [
        rule.objection([ROBUST], 0, measured(robust=trial), [on_front(measured(robust=rival))], {}) is not None
        for trial, rival in zip(trials, rivals, strict=True)
    ]
    return sum(stopped) / rounds


def test_a_trial_as_good_as_another_is_rarely_stopped_and_a_worse_one_mostly() -> None:
    assert 0.03 < stops(1500, 200, apart=0.2, behind=0.0) < 0.065, "0.047 by enumeration"
    assert stops(1500, 200, apart=0.2, behind=0.0, confidence=0.99) < 0.02
    assert stops(300, 200, apart=0.2, behind=0.1) > 0.9
    assert stops(300, 200, apart=0.2, behind=0.1, margin=0.1) < 0.08
    assert stops(300, 200, apart=0.2, behind=-0.05) == 0


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_the_bound_holds_by_enumeration(alpha: float) -> None:
    """Every outcome of 100 examples on which equal networks differ now and then, with its probability."""
    quantile = NormalDist().inv_cdf(1 - alpha)
    for apart in (0.02, 0.1, 0.3):
        wrong = sum(
            comb(100, n) * apart**n * (1 - apart) ** (100 - n) * comb(n, lost) / 2**n
            for n in range(60)
            for lost in range(n + 1)
            if adjusted_wald(lost, n - lost, 100, quantile)[1] < 0
        )
        assert wrong < 1.05 * alpha


def test_many_on_the_front_do_not_stop_a_trial_that_is_as_good_as_each() -> None:
    """Each of six has a chance to look better: all bounds must hold together."""
    rule = Dominated(**COMMON)
    right = torch.rand(400, 7, 200, generator=generator("front"), dtype=torch.float64) < 0.5
    fronts = [[on_front(measured(robust=each), number) for number, each in enumerate(row[1:])] for row in right]
    stopped = [
        rule.objection([ROBUST], 0, measured(robust=row[0]), front, {}) is not None
        for row, front in zip(right, fronts, strict=True)
    ]
    assert 0 < sum(stopped) <= 0.05 * 400


def test_wrong_stops_are_those_that_would_have_been_on_the_front() -> None:
    finished = [{"clean": 0.9, "sparsity": 0.5}, {"clean": 0.8, "sparsity": 0.9}]
    stopped = [
        {"clean": 0.85, "sparsity": 0.7},  # between the two
        {"clean": 0.8, "sparsity": 0.8},
        {"clean": 0.8, "sparsity": 0.9},  # adds nothing
        {"clean": 0.1, "sparsity": 0.99},
    ]
    low, high = clopper_pearson(2, 4)
    assert wrong_stops([CLEAN, SPARSITY], stopped, finished) == {"wrong": 2, "of": 4, "low": low, "high": high}
    met = [Constraint(figure="clean", at_least=0.82)]
    assert wrong_stops([CLEAN, SPARSITY], stopped, finished, met)["wrong"] == 1
    assert wrong_stops([CLEAN], stopped, finished)["wrong"] == 0
    assert wrong_stops([Objective(minimise="clean")], stopped, finished)["wrong"] == 1
    assert wrong_stops([SPARSITY], stopped, [])["wrong"] == 4, "nothing finished: each would have been the first"
