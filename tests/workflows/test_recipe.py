"""Recipes: the shipped ones, overrides, and mistakes at their paths."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from tests.workflows.conftest import SMALL, write_recipe
from workflows import Workflow
from workflows.command.recipe import BadRequest, load_recipe, read_setting, workflow_from_record
from workflows.content import SHIPPED, shipped_recipes
from workflows.imp import IMP


def imp(path: Path, *overrides: str) -> IMP:
    workflow = load_recipe(str(path), overrides).workflow
    assert isinstance(workflow, IMP)
    return workflow


def refusal(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(BadRequest) as refused:
        load_recipe(str(path), overrides)
    return str(refused.value).splitlines()


def changed(folder: Path, **fields: Any) -> Path:
    return write_recipe(folder, {**SMALL, **fields})


def test_every_shipped_recipe_is_valid_and_described() -> None:
    assert shipped_recipes().keys() >= {
        "quickstart",
        "imp-mnist",
        "imp-cifar10",
        "evaluate",
        "epsilon-sweep",
        "over-design",
        "colt",
        "compare-pruning",
        "connectivity",
        "double-descent",
    }
    for name, description in shipped_recipes().items():
        TypeAdapter(Workflow).validate_python(yaml.safe_load((SHIPPED / f"{name}.yaml").read_text()))
        elsewhere = ["train.data=mnist-mini"] if name.startswith(("imp-", "over-", "double-")) else []
        assert isinstance(load_recipe(name, elsewhere).workflow, Workflow)  # checked, but on data that is here
        assert description.endswith("."), name


def test_an_override_reaches_a_nested_field(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    assert imp(path, "train.optimizer.learning_rate=0.5").train.optimizer.learning_rate == 0.5
    assert imp(path, "train.epochs=3", "train.epochs=4").train.epochs == 4


def test_an_override_below_a_name_turns_it_into_a_mapping(tmp_path: Path) -> None:
    path = changed(tmp_path, attacks=["pgd"])
    assert imp(path, "attacks.0.steps=7").attacks[0].model_dump()["steps"] == 7
    assert imp(path, "train.architecture.kind=conv-2").train.architecture.model_dump()["kind"] == "conv-2"


def test_an_override_makes_a_missing_mapping(tmp_path: Path) -> None:
    changed_schedule = imp(write_recipe(tmp_path), "train.schedule.kind=cosine", "train.schedule.warmup=0.1")
    assert changed_schedule.train.schedule.warmup == 0.1


def test_an_override_may_replace_a_list_or_one_place_in_it(tmp_path: Path) -> None:
    path = changed(tmp_path, attacks=["fgsm", "fgsm"])
    assert imp(path, "epsilons=[0.1, 0.2]").epsilons == (0.1, 0.2)
    assert [attack.model_dump()["kind"] for attack in imp(path, "attacks.1=pgd").attacks] == ["fgsm", "pgd"]


@pytest.mark.parametrize("text", ["24:00:00", "1:30", "-1:30", "1:30.5"])
def test_a_time_is_no_number_to_the_base_of_sixty(text: str) -> None:
    assert read_setting(f"time={text}", "a.b=c") == ("time", text)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("levels", "--set levels: give it as a.b=c"),
        ("=3", "--set =3: give it as a.b=c"),
        ("levels=[1", "--set levels=[1: '[1' is not a YAML value"),
        ("attacks.1.steps=3", "--set attacks.1.steps=3: '1' is no place in a list of 1"),
        ("attacks.x=pgd", "--set attacks.x=pgd: 'x' is no place in a list of 1"),
        ("levels.a=3", "--set levels.a=3: 'levels' holds a value, not fields"),
        ("attacks.0.steps.deep=3", "recipe small: attacks.0.steps"),
    ],
)
def test_a_bad_override_is_one_line_that_quotes_it(tmp_path: Path, override: str, message: str) -> None:
    (line,) = refusal(write_recipe(tmp_path), override)
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "ipm"}, "no workflow is called 'ipm'; did you mean 'imp'?"),
        ({"level": 3}, "level: unknown field; did you mean 'levels'?"),
        ({"levels": "many"}, "levels: Input should be a valid integer"),
        ({"replicates": 0}, "replicates: Input should be greater than or equal to 1 (found 0)"),
        ({"attacks": [{"kind": "pgd", "stepz": 3}]}, "attacks.0.stepz: unknown field; did you mean 'steps'?"),
        ({"attacks": ["fgsm", "pdg"]}, "attacks.1: no attack is called 'pdg'; did you mean 'pgd'?"),
        ({"train": {**SMALL["train"], "optimizer": {"kind": "sgd", "learning_rate": "fast"}}},
         "train.optimizer.learning_rate: Input should be a valid number"),
        ({"train": {**SMALL["train"], "architecture": {"kind": "lenet"}}}, "train.architecture: no architecture is"),
        ({"sparsity": 0.9}, "give either levels or sparsity"),
        ({"train": 3}, "train: Input should be a mapping (found 3)"),
        ({"attacks": "fgsm"}, "attacks: Input should be a list (found 'fgsm')"),
        ({"attacks": [{"kind": "transfer", "source": "dense"}]},
         "attacks.0: a transfer takes images from another network, and here is none: measure the trained steps with"),
        ({"attacks": [{"kind": "bpda", "attack": "pgd", "through": ["clamp"]}]},
         "attacks: through: the network has no module 'clamp'; it has normalise, body, body.flatten"),
        ({"epsilons": [0.1, 0.1]}, "attacks: epsilons must rise, but 0.1 is followed by 0.1"),
        ({"epsilons": [0]}, "epsilons.0: Input should be greater than 0 (found 0)"),
        ({"examples": 2001}, "examples is 2001, but the test split holds 2000"),
        ({"levels": None, "sparsity": 0.9999999}, "sparsity: sparsity 0.9999999 is out of reach"),
        ({"train": {**SMALL["train"], "architecture": {"kind": "vit", "patch": 5}}},
         "train.architecture: vit needs height and width divisible by its patch of 5, the images are 1x28x28"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_path_and_what_is_allowed(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    (line,) = refusal(changed(tmp_path, **fields))
    assert line.startswith(f"recipe small: {message}"), line


def test_every_mistake_has_its_line(tmp_path: Path) -> None:
    lines = refusal(changed(tmp_path, levels="many", replicates=0))
    assert len(lines) == 2
    assert all(line.startswith("recipe small: ") for line in lines)


def test_a_record_gives_back_the_workflow(tmp_path: Path) -> None:
    workflow = imp(write_recipe(tmp_path), "train.schedule=cosine")
    assert workflow_from_record({"name": "small", "recipe": workflow.model_dump(mode="json")}) == workflow


def test_a_record_can_be_read_where_its_data_are_not(tmp_path: Path) -> None:
    data = {"kind": "cifar10", "root": str(tmp_path)}
    record = {"name": "small", "recipe": {**SMALL, "train": {**SMALL["train"], "data": data}}}
    assert isinstance(workflow_from_record(record, check=False), IMP)
    with pytest.raises(BadRequest, match=r"run small: .*lacks"):
        workflow_from_record(record)


def test_the_recipes_in_the_readme_are_such() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    recipes = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)]
    assert "imp" in {recipe["kind"] for recipe in recipes}
    for recipe in recipes:  # files that an evaluation names are the reader's own
        workflow_from_record({"recipe": recipe}, check=recipe["kind"] != "evaluate")
