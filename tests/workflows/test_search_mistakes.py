"""Wrong searches: one line each, before any trial."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.runs import all_runs
from cluster.store import Store
from tests.workflows.conftest import write_recipe
from tests.workflows.searches import CHAIN, search_content
from workflows.command.launch import launch
from workflows.command.options import Options
from workflows.command.recipe import BadRequest, load_recipe

INTS = {"int": [1, 3]}


def space(**parameters: Any) -> dict[str, Any]:
    return {"parameters": {name.replace("__", "."): dimension for name, dimension in parameters.items()}}


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown path": (
        {"space": space(train__epoch=INTS)},
        "space: train.epoch = 1: train.epoch: unknown field; did you mean 'epochs'?",
    ),
    "a path through a value": ({"space": space(train__epochs__more=INTS)}, "train.epochs.more"),
    "a place past the end of a list": ({"space": space(attacks__3__steps=INTS)}, "'3' is no place in a list of 1"),
    "a float where the field is whole": ({"space": space(levels={"float": [1, 4]})}, "space: levels = "),
    "a word where the field is a number": ({"space": space(levels={"choice": ["deep"]})}, "space: levels = 'deep'"),
    "a value out of the field's bounds": (
        {"space": space(train__objective__epsilon={"float": [-0.1, 0.1]})},
        "epsilon",
    ),
    "an empty range": ({"space": space(levels={"int": [4, 1]})}, "levels"),
    "a cycle of conditions": (
        {"space": space(levels={**INTS, "when": {"replicates": 1}}, replicates={**INTS, "when": {"levels": 1}})},
        "levels -> replicates -> levels",
    ),
    "a condition on an unknown parameter": ({"space": space(levels={"int": [1, 3], "when": {"depth": 1}})}, "depth"),
    "an objective that no step reports": (
        {"objectives": [{"maximise": "robust@0.2"}]},
        "objectives.0: no step reports 'robust@0.2'; allowed: clean, robust@0.1",
    ),
    "a constraint on a missing metric": (
        {"constraints": [{"figure": "latency", "at_most": 1.0}]},
        "constraints.0: no step reports 'latency'",
    ),
    "no objective": ({"objectives": []}, "objectives"),
    "an objective in two directions": ({"objectives": [{"maximise": "clean", "minimise": "clean"}]}, "objectives.0"),
    "an unknown sampler": ({"sampler": "tree"}, "sampler: no sampler is called 'tree'"),
    "a sampler that cannot": ({"sampler": "cma-es"}, "sampler"),
    "a grid without steps": (
        {"space": space(train__objective__epsilon={"float": [0.05, 0.1]}), "sampler": "grid"},
        "needs a `step`",
    ),
    "no budget": ({"budget": {}}, "budget: give at least one of trials, sample_steps, hours"),
    "an unknown space": ({"space": "sparsity-budge"}, "did you mean 'sparsity-budget'?"),
    "an unknown base": ({"base": "quickstar"}, "base: no recipe is called 'quickstar'; did you mean 'quickstart'?"),
    "a base that is wrong by itself": ({"base": {**CHAIN, "prune": {"fraction": 2}}}, "base: prune.fraction"),
    "a workflow without figures": ({"base": "connectivity"}, "comes to no figures"),
    "a search over searches": ({"base": search_content()}, "base: a search over searches"),
    "a start outside its range": ({"start": [{"levels": 9, "train.objective.epsilon": 0.05}]}, "start.0: levels"),
    "a start with a parameter missing": ({"start": [{"levels": 2}]}, "start.0: train.objective.epsilon"),
    "a median of two objectives": (
        {"stopping": {"kind": "median", "field": "levels", "rungs": [1]}},
        "stopping",
    ),
    "rungs of an unknown field": (
        {"stopping": {"kind": "dominated", "field": "level", "rungs": [1]}},
        "stopping: level: unknown field; did you mean 'levels'?",
    ),
    "one figure as two objectives": (
        {"objectives": [{"maximise": "clean"}, {"minimise": "clean"}]},
        "objectives: 'clean' is given twice",
    ),
    "a mistyped direction": ({"objectives": [{"maximize": "clean"}]}, "did you mean 'maximise'?"),
    "a mistyped budget": ({"budget": {"trails": 3}}, "did you mean 'trials'?"),
    "a field set twice": ({"changes": {"levels": 2}}, "changes: levels: the space sets this field too"),
    "a change that leads nowhere": ({"changes": {"levels.more": 2}}, "changes: levels.more: 'levels' holds a value"),
    "a rung of another schedule": (
        {"stopping": {"kind": "dominated", "field": "train.epochs", "rungs": [1]}},
        "stopping: field: train.epochs: a training of fewer epochs is another training",
    ),
    "a split that is searched over": (
        {"space": space(split={"choice": ["validation", "test"]})},
        "space: split: split: a search looks at validation data",
    ),
    "test data by a change": ({"changes": {"split": "test"}}, "changes: split: a search looks at validation data"),
    "pairs of other examples": (
        {"space": space(replicates=INTS), "stopping": {"kind": "dominated", "field": "levels", "rungs": [1]}},
        "space: replicates: replicates decides what is measured on, and `dominated` compares trials example by example",
    ),
    "rungs that fall": ({"stopping": {"kind": "dominated", "field": "levels", "rungs": [2, 1]}}, "stopping"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_says_where_and_what(mistake: str, tmp_path: Path) -> None:
    change, said = MISTAKES[mistake]
    path = write_recipe(tmp_path, search_content(**copy.deepcopy(change)), "wrong")
    with pytest.raises(BadRequest) as refused:
        load_recipe(str(path))
    (line,) = str(refused.value).splitlines()
    assert line.startswith("recipe wrong: ")
    assert said in line


def test_the_shipped_searches_and_their_spaces_are_whole() -> None:
    from workflows.content import shipped_recipes

    searches = [name for name in shipped_recipes() if name.startswith("search-")]
    assert len(searches) >= 4
    for name in searches:
        load_recipe(name)


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://me:hunter2@host/name", "postgresql://me@host/name?password=hunter2"]
)
def test_a_password_in_the_url_of_a_study_is_refused_and_written_nowhere(url: str, tmp_path: Path) -> None:
    recipe = load_recipe(str(write_recipe(tmp_path, search_content(), "small")))
    options = Options(str(tmp_path / "store"), tmp_path / "out", wandb="disabled", study=url)
    with pytest.raises(BadRequest) as refused:
        launch(recipe, options, Console(quiet=True))
    assert "--study: a URL must hold no password" in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert not all_runs(Store.open(options.store))
