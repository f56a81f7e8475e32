"""The spaces and searches that come with hedgerow: each end of each parameter is a workflow with the figures wanted."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
import yaml
from pydantic import TypeAdapter

from search_spaces.space import Space, shipped_spaces
from tasks.models.initialise import initialise
from tasks.models.robust_wide_resnet import RobustWideResNet
from workflows import Workflow
from workflows.content import SHIPPED, read_content, set_field
from workflows.evaluate import EvaluateModels
from workflows.imp import IMP

SEARCHES = sorted(entry.name.removesuffix(".yaml") for entry in SHIPPED.iterdir() if entry.name.startswith("search-"))


def search(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text())
    return content


def trial(content: Mapping[str, Any], parameters: Mapping[str, Any]) -> Workflow:
    base = content["base"]
    recipe = read_content(base) if isinstance(base, str) else copy.deepcopy(base)
    space = Space.load(content["space"])
    for path, value in [*content.get("changes", {}).items(), *space.fields(parameters)]:
        set_field(recipe, path, copy.deepcopy(value))
    made: Workflow = TypeAdapter(Workflow).validate_python(recipe)
    return made


def assignments(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (parameters for _, parameters in Space.load(content["space"]).probes())
    yield from content.get("start", [])


def test_every_shipped_space_has_a_search() -> None:
    assert {search(name)["space"] for name in SEARCHES} == set(shipped_spaces())


@pytest.mark.parametrize("name", SEARCHES)
def test_every_end_of_a_shipped_space_is_a_workflow_with_the_figures_that_are_searched_by(name: str) -> None:
    content = search(name)
    wanted = {figure for objective in content["objectives"] for figure in objective.values()}
    wanted |= {constraint["figure"] for constraint in content.get("constraints", [])}
    for parameters in assignments(content):
        workflow = trial(content, parameters)
        workflow.check()
        assert wanted <= set(workflow.figure_names()), parameters


@pytest.mark.parametrize("name", SEARCHES)
def test_parameters_reach_the_fields_that_they_name(name: str) -> None:
    content = search(name)
    made = {str(trial(content, parameters).identity()) for _, parameters in Space.load(content["space"]).probes()}
    distinct = {str(sorted(parameters.items())) for _, parameters in Space.load(content["space"]).probes()}
    assert len(made) == len(distinct)


def test_attacks_of_the_budget_cost_the_same() -> None:
    content = search("search-attack")
    for parameters in assignments(content):
        workflow = trial(content, parameters)
        assert isinstance(workflow, EvaluateModels)
        attack = workflow.attacks[0].model_dump()
        assert attack["steps"] * attack["restarts"] == 100


def test_deeper_trials_of_the_same_training_share_its_chain() -> None:
    content = search("search-sparsity")
    chosen = {"train.objective": "pgd", "train.objective.epsilon": 0.1}
    short, deep = (trial(content, {**chosen, "levels": levels}) for levels in (2, 8))
    assert isinstance(short, IMP)
    assert isinstance(deep, IMP)
    assert short.model_copy(update={"levels": 8}) == deep


@pytest.mark.parametrize("parameters", list(assignments(search("search-architecture"))))
def test_every_candidate_takes_its_images(parameters: dict[str, Any]) -> None:
    workflow = trial(search("search-architecture"), parameters)
    assert isinstance(workflow, EvaluateModels)
    candidate = workflow.models["candidate"]
    architecture = candidate.model_dump()["architecture"]
    network = initialise(RobustWideResNet.model_validate(architecture), candidate.data.signature(), 0).eval()  # type: ignore[union-attr]
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


def test_the_architecture_search_begins_at_the_published_rule() -> None:
    first, *_ = search("search-architecture")["start"]
    widths = [first[f"width{stage}"] for stage in (1, 2, 3)]
    assert widths[0] == widths[1] > widths[2]
