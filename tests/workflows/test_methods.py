"""The list of methods and the schema of recipes."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tasks.component import Component, members
from workflows import Workflow
from workflows.command.methods import families, methods_records, methods_table, recipe_schema
from workflows.command.recipe import BadRequest
from workflows.content import SHIPPED, shipped_recipes

jsonschema = pytest.importorskip("jsonschema")

FAMILIES = {
    "Workflow", "Architecture", "Attack", "Augmentation", "Budget", "Corruption", "Dataset", "Matching", "Objective",
    "Optimizer", "Partition", "PruningMethod", "Saliency", "Schedule", "Sparsifier", "Stopping",
    "Task",
}  # fmt: skip


def complaints(content: Any) -> list[str]:
    validator = jsonschema.Draft202012Validator(recipe_schema(content.get("kind", "imp")))
    return [error.message for error in validator.iter_errors(content)]


def quickstart(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((SHIPPED / "quickstart.yaml").read_text())
    content["train"] |= changes
    return content


def test_every_family_is_listed_with_members_and_workflows_come_first() -> None:
    assert {
        family.__name__ for family in families() if family.__module__.startswith(("tasks", "workflows"))
    } == FAMILIES
    assert families()[0] is Workflow
    assert {record["family"] for record in methods_records()} >= FAMILIES


def test_tasks_are_found_although_they_lie_in_different_folders() -> None:
    tasks = {record["kind"]: record["module"] for record in methods_records() if record["family"] == "Task"}
    assert tasks.items() >= {"train": "tasks.training.train", "prune": "tasks.pruning.prune"}.items()
    assert "evaluate" in tasks


def test_every_method_says_what_it_is_in_its_own_words() -> None:
    for record in methods_records():
        if record["module"].startswith(("tasks", "workflows")):
            assert record["source"].endswith("."), record
            family = next(family for family in families() if family.__name__ == record["family"])
            assert record["source"] != (family.__doc__ or "").partition("\n")[0], record


def test_the_table_names_every_method() -> None:
    kinds = [str(cell).strip() for cell in methods_table().columns[0].cells]
    assert {record["kind"] for record in methods_records()} <= set(kinds)


def test_the_schema_is_one_and_accepts_the_shipped_recipes() -> None:
    for kind in members(Workflow):
        jsonschema.Draft202012Validator.check_schema(recipe_schema(kind))
    for name in shipped_recipes():
        assert complaints(yaml.safe_load((SHIPPED / f"{name}.yaml").read_text())) == [], name


@pytest.mark.parametrize(
    "change",
    [
        {"objective": {"kind": "pgdd", "epsilon": 0.1}},
        {"objective": {"kind": "pgd", "epsilom": 0.1}},
        {"objective": {"epsilon": 0.1}},
        {"objective": "pgdd"},
        {"optimizer": {"kind": "adam", "learning_rate": -1}},
        {"epochs": "many"},
        {"epoch": 3},
    ],
)
def test_the_schema_refuses_what_a_recipe_may_not_hold(change: dict[str, Any]) -> None:
    assert complaints(quickstart()) == []
    assert complaints(quickstart(**change))


def test_a_recipe_without_its_kind_does_not_fit_the_schema() -> None:
    content = quickstart()
    del content["kind"]
    assert complaints(content)


def test_an_unknown_workflow_has_no_schema_and_the_nearest_is_offered() -> None:
    with pytest.raises(BadRequest, match="no workflow is called 'ipm'; did you mean 'imp'"):
        recipe_schema("ipm")


def test_members_of_a_family_are_subclasses_of_it() -> None:
    for family in families():
        assert issubclass(family, Component)
        assert all(issubclass(member, family) for member in members(family).values())
