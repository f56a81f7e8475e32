"""Recipes: YAML files that validate straight into workflows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from workflows import Workflow

SHIPPED = files("workflows") / "recipes"
IN_YAML = {
    "tuple_type": "Input should be a list",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "Input should be a mapping"),
}
"""What pydantic calls by its Python name."""


class BadRequest(ValueError):
    """The request was wrong: one clear line for each mistake, exit code 2."""


@dataclass(frozen=True)
class Recipe:
    """A named workflow, ready to run."""

    name: str
    workflow: Workflow
    content: Mapping[str, Any]
    """As written, overrides included."""


def shipped_recipes() -> dict[str, str]:
    """The recipes that come with hedgerow: name and first comment line."""
    found = {}
    for entry in sorted(SHIPPED.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".yaml"):
            found[entry.name.removesuffix(".yaml")] = entry.read_text().splitlines()[0].lstrip("# ")
    return found


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of this name or path, with `a.b=c` overrides.

    Raises:
        BadRequest: it cannot be found, read or understood; says where and what is allowed.
    """
    content = _read(name)
    for override in overrides:
        _override(content, override)
    short = Path(name).stem
    return Recipe(short, _validated(f"recipe {short}", content), content)


def workflow_from_record(record: Mapping[str, Any], check: bool = True) -> Workflow:
    """The workflow of a run recorded in a store.

    Args:
        record: of the run.
        check: whether it must be able to run here: a report needs neither its data nor its machine.

    Raises:
        BadRequest: this version of hedgerow no longer understands it.
    """
    return _validated(f"run {record.get('name', '')}", dict(record["recipe"]), check)


def explain_errors(error: ValidationError) -> list[str]:
    """One line a mistake: dotted path, what is wrong, value found."""
    lines = []
    for mistake in error.errors():
        path = ".".join(str(part) for part in mistake["loc"])
        message = mistake["msg"].removeprefix("Value error, ")
        message = IN_YAML.get(mistake["type"], message)
        shown = "" if isinstance(mistake["input"], Mapping) else f" (found {mistake['input']!r})"
        lines.append(f"{path + ': ' if path else ''}{message}{shown}")
    return lines


def lines_of(error: ValueError) -> list[str]:
    """What a wrong value was said to be, one line a mistake."""
    return explain_errors(error) if isinstance(error, ValidationError) else [str(error)]


def _validated(where: str, content: Mapping[str, Any], check: bool = True) -> Workflow:
    try:
        workflow = TypeAdapter(Workflow).validate_python(content)
        if check:
            workflow.check()
    except ValueError as error:
        raise BadRequest("\n".join(f"{where}: {line}" for line in lines_of(error))) from None
    return workflow


def _read(name: str) -> dict[str, Any]:
    looks_like_path = "/" in name or name.endswith((".yaml", ".yml"))
    source = Path(name) if looks_like_path else SHIPPED / f"{name}.yaml"
    if not looks_like_path and not source.is_file():
        known = list(shipped_recipes())
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise BadRequest(
            f"no recipe is called '{name}'; {hint}shipped: {', '.join(known)}; or give a path to a .yaml file"
        )
    try:
        content = yaml.safe_load(source.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise BadRequest(f"recipe {name}: cannot be read: {reason}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise BadRequest(f"recipe {name}{where}: not YAML: {getattr(error, 'problem', None) or 'unreadable'}") from None
    if not isinstance(content, dict):
        raise BadRequest(f"recipe {name}: a recipe is a mapping with a `kind`, not {type(content).__name__}")
    return content


def _override(content: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise BadRequest(f"--set {override}: give it as a.b=c")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise BadRequest(f"--set {override}: '{text}' is not a YAML value") from None
    *parents, last = path.split(".")
    here: Any = content
    for part in parents:
        here = _enter(here, part, override)
    if isinstance(here, list):
        here[_index(here, last, override)] = value
    else:
        here[last] = value


def _enter(here: Any, part: str, override: str) -> Any:
    """The container at `part`; a component given by its name alone becomes a mapping, a missing one is made."""
    place: Any = _index(here, part, override) if isinstance(here, list) else part
    inner = here[place] if isinstance(here, list) else here.get(place, {})
    if isinstance(inner, str):
        inner = {"kind": inner}
    if not isinstance(inner, dict | list):
        raise BadRequest(f"--set {override}: '{part}' holds a value, not fields")
    here[place] = inner
    return inner


def _index(here: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(here):
        raise BadRequest(f"--set {override}: '{part}' is no place in a list of {len(here)}")
    return int(part)
