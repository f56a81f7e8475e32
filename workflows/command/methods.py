"""What `methods` and `schema` say: every method with its source, and the shape of a recipe."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from difflib import get_close_matches
from inspect import getdoc
from types import ModuleType
from typing import Any

from pydantic import BaseModel
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

import tasks
import workflows
from search_spaces import samplers
from tasks.component import Component, is_member, json_schema, kind_of, members
from workflows import Workflow
from workflows.command.recipe import BadRequest


def families() -> list[type[Component]]:
    """Every family of components, in alphabetical order; `Workflow`, which puts them together, comes first.

    A family is found because its module is imported, and so are the tasks, which unlike the members of other families
    lie in the folders of what they do and not beside their family.
    """
    for room in (tasks, workflows):
        _import_all(room)
    found = [family for family in Component.__subclasses__() if not is_member(family)]
    return sorted(found, key=lambda family: (family is not Workflow, family.__name__))


def methods_records() -> list[dict[str, str]]:
    """Every method as JSON: family, kind, class, what it is and after whom, module."""
    return [
        {
            "family": name,
            "kind": kind_of(member),
            "class": member.__name__,
            "source": (getdoc(member) or "").partition("\n")[0],
            "module": member.__module__,
        }
        for name, _, found in _shelves()
        for member in found
    ]


def methods_table() -> Table:
    """Every method for the terminal, under its family and the folder that the family lives in."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("kind", no_wrap=True)
    table.add_column("what it is, and its source")
    records = methods_records()
    for name, module, _ in _shelves():
        table.add_section()
        table.add_row(Text(name, "bold"), Text(module, "dim"))
        for record in records:
            if record["family"] == name:
                table.add_row(f"  {record['kind']}", Text(record["source"]))
    return table


def recipe_schema(kind: str) -> dict[str, Any]:
    """The JSON schema of a workflow's recipes.

    Raises:
        BadRequest: no workflow is called like this.
    """
    known = members(Workflow)
    if kind not in known:
        close = get_close_matches(kind, known, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise BadRequest(f"no workflow is called '{kind}'; {hint}allowed: {', '.join(known)}")
    schema = json_schema(known[kind])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "required": ["kind"]}


def _shelves() -> list[tuple[str, str, Iterable[type[BaseModel]]]]:
    """Name, folder and members of each family, and of the samplers, which live in a room without components."""
    shelves = [(family.__name__, family.__module__, members(family).values()) for family in families()]
    return [*shelves, ("Sampler", samplers.__name__, samplers.MEMBERS)]


def _import_all(package: ModuleType) -> None:
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(found.name)
