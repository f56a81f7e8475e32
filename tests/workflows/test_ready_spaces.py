"""The spaces and searches that come with hedgerow; that each end of each parameter is a workflow, `check` looks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from search_spaces.space import shipped_spaces
from tasks.models.initialise import initialise
from tasks.models.robust_wide_resnet import RobustWideResNet
from tasks.training.train import Train
from workflows.command.recipe import load_recipe
from workflows.content import read_content, shipped_recipes
from workflows.evaluate import EvaluateModels
from workflows.imp import IMP
from workflows.search import Search

SEARCHES = [name for name in shipped_recipes() if name.startswith("search-")]


def search(name: str) -> Search:
    workflow = load_recipe(name).workflow
    assert isinstance(workflow, Search)
    return workflow


def assignments(name: str) -> list[dict[str, Any]]:
    found = search(name)
    return [*(parameters for _, parameters in found.space.probes()), *found.start]


def test_every_shipped_space_has_a_search() -> None:
    assert {read_content(name)["space"] for name in SEARCHES} == set(shipped_spaces())


@pytest.mark.parametrize("name", SEARCHES)
def test_parameters_reach_the_fields_that_they_name(name: str) -> None:
    found, probes = search(name), assignments(name)
    made = {str(found.workflow(parameters).identity()) for parameters in probes}
    assert len(made) == len({str(sorted(parameters.items())) for parameters in probes})


def test_attacks_of_the_budget_cost_the_same() -> None:
    found = search("search-attack")
    for parameters in assignments("search-attack"):
        workflow = found.workflow(parameters)
        assert isinstance(workflow, EvaluateModels)
        attack = workflow.attacks[0].model_dump()
        assert attack["steps"] * attack["restarts"] == 100


def test_deeper_trials_of_the_same_training_share_its_chain() -> None:
    found = search("search-sparsity")
    chosen = {"train.objective": "pgd", "train.objective.epsilon": 0.1}
    short, deep = (found.workflow({**chosen, "levels": levels}) for levels in (2, 8))
    assert isinstance(short, IMP)
    assert isinstance(deep, IMP)
    assert short.model_copy(update={"levels": 8}) == deep


def test_every_candidate_takes_its_images() -> None:
    found = search("search-architecture")
    for parameters in assignments("search-architecture"):
        workflow = found.workflow(parameters)
        assert isinstance(workflow, EvaluateModels)
        candidate = workflow.models["candidate"]
        assert isinstance(candidate, Train)
        assert isinstance(candidate.architecture, RobustWideResNet)
        network = initialise(candidate.architecture, candidate.data.signature(), 0).eval()
        with torch.no_grad():
            assert network(torch.zeros(1, 1, 28, 28)).shape == (1, 10), parameters


def test_the_architecture_search_begins_at_the_published_rule() -> None:
    first, *_ = search("search-architecture").start
    widths = [first[f"width{stage}"] for stage in (1, 2, 3)]
    assert widths[0] == widths[1] > widths[2]
