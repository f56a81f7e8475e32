"""Recipes: YAML files that validate straight into workflows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from workflows import Workflow
from workflows.content import read_content, set_field
from workflows.mistakes import lines_of


class BadRequest(ValueError):
    """The request was wrong: one clear line for each mistake, exit code 2."""


@dataclass(frozen=True)
class Recipe:
    """A named workflow, ready to run."""

    name: str
    workflow: Workflow
    content: Mapping[str, Any]
    """As written, overrides included."""


def load_recipe(name: str, overrides: Sequence[str] = (), check: bool = True) -> Recipe:
    """The recipe of this name or path, with `a.b=c` overrides.

    Args:
        name: of one that comes with hedgerow, or a path.
        overrides: as `a.b=c`.
        check: whether it must be able to run here: one for a cluster needs neither its data nor its machine here.

    Raises:
        BadRequest: it cannot be found, read or understood; says where and what is allowed.
    """
    try:
        content = read_content(name)
    except ValueError as error:
        raise BadRequest(str(error)) from None
    for override in overrides:
        _override(content, override)
    short = Path(name).stem
    return Recipe(short, _validated(f"recipe {short}", content, check), content)


def workflow_from_record(record: Mapping[str, Any], check: bool = True) -> Workflow:
    """The workflow of a run recorded in a store.

    Args:
        record: of the run.
        check: whether it must be able to run here: a report needs neither its data nor its machine.

    Raises:
        BadRequest: this version of hedgerow no longer understands it.
    """
    return _validated(f"run {record.get('name', '')}", dict(record["recipe"]), check)


def _validated(where: str, content: Mapping[str, Any], check: bool = True) -> Workflow:
    try:
        workflow = TypeAdapter(Workflow).validate_python(content)
        if check:
            workflow.check()
    except ValueError as error:
        raise BadRequest("\n".join(f"{where}: {line}" for line in lines_of(error))) from None
    return workflow


def read_setting(override: str, form: str) -> tuple[str, Any]:
    """The field that `--set` names, and its value, which is YAML.

    A time such as 24:00:00 stays text: YAML 1.1 reads a number to the base of 60, which nobody means.

    Args:
        override: as it was typed.
        form: that it should have.

    Raises:
        BadRequest: it has another form, or its value is none.
    """
    field, equals, text = override.partition("=")
    if not equals or not field:
        raise BadRequest(f"--set {override}: give it as {form}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise BadRequest(f"--set {override}: '{text}' is not a YAML value") from None
    return field, text if isinstance(value, int | float) and ":" in text else value


def _override(content: dict[str, Any], override: str) -> None:
    path, value = read_setting(override, "a.b=c")
    try:
        set_field(content, path, value)
    except ValueError as error:
        raise BadRequest(f"--set {override}: {error}") from None
