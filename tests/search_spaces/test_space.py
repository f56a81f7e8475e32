"""Spaces: what they suggest, set and list."""

import json
import math
from pathlib import Path

import pytest
from optuna.trial import FixedTrial

from search_spaces.space import Space, shipped_spaces
from tests.search_spaces.studies import CONDITIONAL, FINITE, NUMBERS, ONE, open_study

OBJECTIVES = {"pgd": {"kind": "pgd", "steps": 3}, "trades": {"kind": "trades"}}


def test_parents_come_before_children_and_otherwise_names_in_order() -> None:
    space = Space.load(
        {
            "parameters": {
                "z": {"choice": ["a", "b"]},
                "b": {"int": [1, 3], "when": {"z": "a"}},
                "a": {"int": [1, 3], "when": {"b": 2}},
                "m": {"float": [0, 1]},
            }
        }
    )
    assert space.order == ("m", "z", "b", "a")


def test_a_parameter_whose_condition_does_not_hold_is_left_out() -> None:
    given = {"levels": 3, "share": 0.5, "objective": "pgd", "objective.steps": 7, "objective.beta": 2.0}
    assert "objective.beta" not in CONDITIONAL.suggest(FixedTrial(given))
    assert "objective.steps" not in CONDITIONAL.suggest(FixedTrial({**given, "objective": "trades"}))


def test_a_parameter_goes_with_the_one_it_depends_on() -> None:
    space = Space.load(
        {
            "parameters": {
                "a": {"choice": [True, False]},
                "b": {"choice": ["x", "y"], "when": {"a": True}},
                "c": {"int": [1, 2], "when": {"b": ["x", "y"]}},
            }
        }
    )
    assert space.suggest(FixedTrial({"a": False, "b": "x", "c": 1})) == {"a": False}


def test_a_stepped_number_is_the_one_that_was_written() -> None:
    space = Space.load({"parameters": {"share": {"float": [0.1, 1.0], "step": 0.05}}})
    assert space.suggest(FixedTrial({"share": 0.1 + 3 * 0.05})) == {"share": 0.25}
    assert [values["share"] for values in space.combinations()] == [round(0.05 * n, 2) for n in range(2, 21)]


def test_outer_fields_are_set_before_inner_ones() -> None:
    space = Space.load(
        {
            "parameters": {
                "train.objective": {"choice": OBJECTIVES},
                "a.b.c": {"int": [1, 2]},
                "train.objective.beta": {"float": [1, 8], "when": {"train.objective": "trades"}},
            }
        }
    )
    parameters = {"a.b.c": 1, "train.objective.beta": 2.0, "train.objective": "trades"}
    assert space.fields(parameters) == [
        ("train.objective", {"kind": "trades"}),
        ("a.b.c", 1),
        ("train.objective.beta", 2.0),
    ]


def test_one_parameter_sets_several_fields() -> None:
    space = Space.load(
        {
            "parameters": {
                "budget": {"fields": ["attack.steps", "attack.restarts"], "choice": {"100x1": [100, 1], "same": 5}},
                "epsilon": {"fields": ["train.epsilon", "epsilons"], "float": [0.1, 0.3]},
                "controls": {"choice": {"none": [], "both": ["a", "b"]}},
            }
        }
    )
    assert space.fields({"budget": "100x1"}) == [("attack.restarts", 1), ("attack.steps", 100)]
    assert space.fields({"budget": "same"}) == [("attack.restarts", 5), ("attack.steps", 5)]
    assert space.fields({"epsilon": 0.2}) == [("epsilons", 0.2), ("train.epsilon", 0.2)]
    assert space.fields({"controls": "both"}) == [("controls", ["a", "b"])]


def test_one_field_may_vary_differently_under_conditions_that_exclude_each_other() -> None:
    space = Space.load(
        {
            "parameters": {
                "objective": {"choice": ["pgd", "trades"]},
                "weak": {"float": [0, 0.1], "fields": ["epsilon"], "when": {"objective": "pgd"}},
                "strong": {"float": [0.1, 0.3], "fields": ["epsilon"], "when": {"objective": "trades"}},
            }
        }
    )
    assert space.fields({"objective": "pgd", "weak": 0.05})[0] == ("epsilon", 0.05)


@pytest.mark.parametrize("space", [NUMBERS, CONDITIONAL, FINITE])
def test_probes_see_both_ends_a_value_between_and_every_choice(space: Space) -> None:
    seen: dict[str, set[object]] = {}
    for name, parameters in space.probes():
        seen.setdefault(name, set()).add(parameters[name])
        assert parameters == space.suggest(FixedTrial(parameters))
    assert seen.keys() == space.parameters.keys()
    for name, dimension in space.parameters.items():
        form = dimension.model_dump()
        if "choice" in form:
            assert seen[name] == set(form["choice"])
        else:
            low, high = form.get("int") or form["float"]
            inner = seen[name] - {low, high}
            assert {low, high} < seen[name]
            assert all(low < value < high for value in inner)
            if "float" in form:
                assert not any(float(value).is_integer() for value in inner)


def test_a_probe_meets_conditions_that_hang_on_each_other() -> None:
    space = Space.load(
        {
            "parameters": {
                "a": {"choice": ["x", "z"]},
                "b": {"choice": ["n", "y"], "when": {"a": "z"}},
                "c": {"int": [1, 9], "when": {"a": ["x", "z"], "b": "y"}},
            }
        }
    )
    probes = [parameters for name, parameters in space.probes() if name == "c"]
    assert probes == [{"a": "z", "b": "y", "c": value} for value in (1, 5, 9)]


@pytest.mark.parametrize("space", [FINITE, Space.load({"parameters": {"n": {"int": [1, 9], "step": 4}}})])
def test_the_size_is_the_number_of_combinations_each_of_them_once(space: Space) -> None:
    listed = [json.dumps(parameters, sort_keys=True) for parameters in space.combinations()]
    assert len(listed) == len(set(listed)) == space.size()
    assert all(json.loads(one) == space.suggest(FixedTrial(json.loads(one))) for one in listed)


def test_a_large_space_is_counted_without_being_listed() -> None:
    space = Space.load({"parameters": {f"p{n}": {"int": [1, 1000]} for n in range(20)}})
    assert space.size() == 1000**20


def test_a_space_without_end_has_no_size_and_no_list() -> None:
    assert NUMBERS.size() is None
    with pytest.raises(ValueError, match=r"parameters\.train\.epsilon: a float without a `step` has no end"):
        NUMBERS.combinations()


def test_all_parts_of_a_range_are_reached_evenly() -> None:
    dimension = CONDITIONAL.parameters["levels"]
    values = [dimension.at(place / 700) for place in range(700)]
    assert {value: values.count(value) for value in set(values)} == dict.fromkeys(range(2, 9), 100)
    sizes = NUMBERS.parameters["train.epsilon"]
    middle = sizes.at(0.5)
    assert isinstance(middle, float)
    assert math.isclose(middle, math.sqrt(0.01 * 0.3))


@pytest.mark.parametrize("space", [NUMBERS, CONDITIONAL, FINITE])
def test_every_value_that_is_asked_lies_in_the_space(space: Space) -> None:
    study = open_study("random", space, ONE)
    for _ in range(100):
        parameters = study.ask() or {}
        assert all(space.parameters[name].contains(value) for name, value in parameters.items())
        assert {name for name in space.order if space.holds(name, parameters)} == parameters.keys()


@pytest.mark.parametrize("space", [NUMBERS, CONDITIONAL, FINITE])
def test_what_is_written_out_reads_back(space: Space) -> None:
    assert Space.load(json.loads(space.model_dump_json())) == space


def test_a_space_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("# Depth.\nparameters:\n  levels: {int: [2, 8]}\n")
    assert Space.load(file) == Space.load(str(file)) == Space.load({"parameters": {"levels": {"int": [2, 8]}}})


@pytest.mark.parametrize("name", shipped_spaces() or [pytest.param("", marks=pytest.mark.skip(reason="none yet"))])
def test_shipped_spaces_load_and_say_what_they_vary(name: str) -> None:
    assert Space.load(name).order
    assert shipped_spaces()[name].endswith(".")


def test_the_order_of_labels_in_a_mapping_means_nothing() -> None:
    spaces = [
        Space.load({"parameters": {"objective": {"choice": {label: {"kind": label} for label in labels}}}})
        for labels in (["pgd", "trades", "fgsm"], ["trades", "fgsm", "pgd"])
    ]
    assert spaces[0].distributions() == spaces[1].distributions()
