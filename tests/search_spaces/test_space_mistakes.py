"""Mistaken spaces: each is one line at its place."""

from pathlib import Path
from typing import Any

import pytest

from search_spaces.space import Space

X = {"choice": ["x", "y"]}
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"a": {"int": [8, 2]}}, "parameters.a.int: the range from 8 to 2 is empty"),
    ({"a": {"int": [2, 2]}}, "parameters.a.int: the range from 2 to 2 is empty; a single value is a choice of one"),
    ({"a": {"float": [0.3, 0.1]}}, "parameters.a.float: the range from 0.3 to 0.1 is empty"),
    ({"a": {"float": [0, 1], "log": True}}, "parameters.a.float: a range with `log` starts above 0, not at 0.0"),
    ({"a": {"int": [0, 9], "log": True}}, "parameters.a.int: a range with `log` starts above 0, not at 0"),
    ({"a": {"int": [1, 9], "log": True, "step": 2}}, "parameters.a.step: `log` and `step` exclude each other"),
    ({"a": {"int": [1, 9], "step": 0}}, "parameters.a.step: Input should be greater than 0 (found 0)"),
    ({"a": {"float": [0, 1], "step": -0.1}}, "parameters.a.step: Input should be greater than 0 (found -0.1)"),
    (
        {"a": {"float": [0, 1], "step": 0.3}},
        "parameters.a.step: steps of 0.3 from 0.0 do not meet 1.0; the last one is",
    ),
    ({"a": {"int": [1.5, 3]}}, "parameters.a.int.0: Input should be a valid integer (found 1.5)"),
    ({"a": {"float": [False, 3]}}, "parameters.a.float: should be a number (found [False, 3])"),
    ({"a": {"float": ["low", 3]}}, "parameters.a.float.0: Input should be a valid number"),
    ({"a": {"float": [0, float("inf")]}}, "parameters.a.float.1: Input should be a finite number (found inf)"),
    ({"a": {"int": [1, 2, 3]}}, "parameters.a.int: Tuple should have at most 2 items"),
    ({"a": {"choice": []}}, "parameters.a.choice: no choices"),
    ({"a": {"choice": {}}}, "parameters.a.choice: no choices"),
    ({"a": {"choice": ["x", "y", "x"]}}, "parameters.a.choice: the choice 'x' is there twice"),
    ({"a": {"choice": [1, True]}}, "parameters.a.choice: the choice True is there twice"),
    ({"a": {"choice": [{"kind": "pgd"}]}}, "parameters.a.choice: choice 1 is a dict: give each a label"),
    ({"a": {"choice": {0.1: {}}}}, "parameters.a.choice: YAML reads the label 0.1 as a float: put it in quotes"),
    ({"a": {"choice": "x"}}, "parameters.a.choice: should be a list of scalars, or a mapping of labels to values"),
    ({"a": X, "b": {"int": [1, 2], "when": {"aa": "x"}}}, "parameters.b.when.aa: no such parameter; did you mean 'a'?"),
    (
        {"a": X, "b": {"int": [1, 2], "when": {"a": "z"}}},
        "parameters.b.when.a: 'a' is never 'z'; allowed: x, y (found 'z')",
    ),
    (
        {"a": X, "b": {"int": [1, 2], "when": {"a": ["x", "z"]}}},
        "parameters.b.when.a: 'a' is never 'z'; allowed: x, y (found ['x', 'z'])",
    ),
    ({"a": X, "b": {"int": [1, 2], "when": {"a": []}}}, "parameters.b.when.a: no value is listed (found [])"),
    (
        {"a": {"int": [1, 9], "step": 2}, "b": {"int": [1, 2], "when": {"a": 2}}},
        "parameters.b.when.a: 'a' is never 2; allowed: 1 to 9 in steps of 2 (found 2)",
    ),
    (
        {"a": {"float": [0, 1]}, "b": {"int": [1, 2], "when": {"a": 0.5}}},
        "parameters.b.when.a: a condition needs a choice, an int or a float with a step (found 0.5)",
    ),
    (
        {"a": {**X, "when": {"b": "x"}}, "b": {**X, "when": {"c": "x"}}, "c": {**X, "when": {"a": "x"}}, "d": X},
        "parameters.a.when: a cycle of conditions: a -> b -> c -> a",
    ),
    (
        {"0": {**X, "when": {"b": "x"}}, "b": {**X, "when": {"c": "x"}}, "c": {**X, "when": {"b": "x"}}},
        "parameters.b.when: a cycle of conditions: b -> c -> b",
    ),
    ({"a": {**X, "when": {"a": "x"}}}, "parameters.a.when: a cycle of conditions: a -> a"),
    (
        {"a": X, "b": {**X, "when": {"a": "x"}}, "c": {"int": [1, 2], "when": {"a": "y", "b": "x"}}},
        "parameters.c.when: its conditions are never met together",
    ),
    ({"a": {"int": [1, 2], "float": [1, 2]}}, "parameters.a: a parameter has one of `int`, `float` and `choice`, not"),
    ({"a": {"log": True}}, "parameters.a: a parameter has one of `int`, `float` and `choice`; found log"),
    (
        {"a": {"choices": [1]}},
        "parameters.a: a parameter has one of `int`, `float` and `choice`; found choices; did you",
    ),
    ({"a": 3}, "parameters.a: a parameter is a mapping with one of `int`, `float` and `choice` (found 3)"),
    ({"a": {"int": [1, 2], "stepp": 1}}, "parameters.a.stepp: unknown field; did you mean 'step'? allowed: "),
    (
        {"a": {"fields": ["b", "c"], "choice": {"one": [1, 2], "two": [1]}}},
        "parameters.a.choice.two: a list of 1 for 2 fields (b, c) (found [1])",
    ),
    ({"a": {"fields": [], "int": [1, 2]}}, "parameters.a.fields: Tuple should have at least 1 item"),
    (
        {"a": {"int": [1, 2]}, "b": {"fields": ["a"], "int": [1, 2]}},
        "parameters.b.fields: the field a is set by 'a' already (found 'a')",
    ),
    ({"b": {"fields": ["a", "a"], "int": [1, 2]}}, "parameters.b.fields: the field a is set by 'b' already"),
    (
        {
            "o": {"choice": ["x", "y", "z"]},
            "b": {"fields": ["a"], "int": [1, 2], "when": {"o": ["x", "y"]}},
            "c": {"fields": ["a"], "int": [1, 2], "when": {"o": ["y", "z"]}},
        },
        "parameters.c.fields: the field a is set by 'b' already",
    ),
    ({}, "parameters: Dictionary should have at least 1 item"),
]


@pytest.mark.parametrize(("parameters", "line"), MISTAKES, ids=[line for _, line in MISTAKES])
def test_a_mistake_is_one_line_with_its_path(parameters: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Space.load({"parameters": parameters})
    message = str(caught.value)
    assert message.startswith(f"space: {line}")
    assert "\n" not in message


def test_each_of_several_mistakes_has_its_line() -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Space.load({"parameters": {"a": {"int": [8, 2]}, "b": {"choice": []}}})
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == [
        " parameters.a.int",
        " parameters.b.choice",
    ]


def test_a_mistyped_section_is_named() -> None:
    with pytest.raises(ValueError, match=r"space: paramters: unknown field; did you mean 'parameters'\?"):
        Space.load({"paramters": {}})


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("- a\n", "a space is a mapping with `parameters`, not a list"),
        ("a: [1\n", "line 2: not YAML"),
        ("parameters:\n  a: {int: [8, 2]}\n", "parameters.a.int: the range from 8 to 2 is empty"),
    ],
)
def test_a_mistaken_file_is_named(tmp_path: Path, content: str, line: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"space .*mine\.yaml") as caught:
        Space.load(file)
    assert line in str(caught.value)


def test_a_missing_file_and_an_unknown_name_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.yaml: cannot be read: No such file"):
        Space.load(tmp_path / "absent.yaml")
    with pytest.raises(ValueError, match=r"no space is called 'sparsity-budgte'; .*shipped: .*path to a \.yaml file"):
        Space.load("sparsity-budgte")
