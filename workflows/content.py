"""The content of recipes: read from YAML files, and changed field by field before it is understood."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

SHIPPED = files("workflows") / "recipes"


class OrName:
    """Lets a name stand for what it names, in recipes and in their schema."""

    def __init__(self, read: Callable[[str], Any], *names: str) -> None:
        """Prepares it.

        Args:
            read: what a name stands for.
            names: all that there are; any when not given.
        """
        self._read = read
        self._schema: dict[str, Any] = {"enum": list(names)} if names else {"type": "string"}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(
            lambda given: self._read(given) if isinstance(given, str) else given, handler(source)
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [self._schema, handler(schema)]}


def shipped_recipes() -> dict[str, str]:
    """The recipes that come with hedgerow: name and first comment line."""
    found = {}
    for entry in sorted(SHIPPED.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".yaml"):
            found[entry.name.removesuffix(".yaml")] = entry.read_text().splitlines()[0].lstrip("# ")
    return found


def read_content(name: str) -> dict[str, Any]:
    """What a recipe says.

    Args:
        name: of a shipped recipe, or the path of a .yaml file.

    Raises:
        ValueError: there is no such recipe, or it is none.
    """
    looks_like_path = "/" in name or name.endswith((".yaml", ".yml"))
    source = Path(name) if looks_like_path else SHIPPED / f"{name}.yaml"
    if not looks_like_path and not source.is_file():
        known = list(shipped_recipes())
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise ValueError(
            f"no recipe is called '{name}'; {hint}shipped: {', '.join(known)}; or give a path to a .yaml file"
        )
    try:
        content = yaml.safe_load(source.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ValueError(f"recipe {name}: cannot be read: {reason}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"recipe {name}{where}: not YAML: {getattr(error, 'problem', None) or 'unreadable'}") from None
    if not isinstance(content, dict):
        found = "an empty file" if content is None else f"a {type(content).__name__}"
        raise ValueError(f"recipe {name}: a recipe is a mapping with a `kind`, not {found}")
    return content


def set_field(content: dict[str, Any], path: str, value: Any) -> None:
    """Sets a field by its dotted path; places in a list are numbers.

    Raises:
        ValueError: the path leads through a value, or past the end of a list.
    """
    *parents, last = path.split(".")
    here: Any = content
    for part in parents:
        here = _enter(here, part)
    if isinstance(here, list):
        here[_index(here, last)] = value
    else:
        here[last] = value


def field_of(content: dict[str, Any], path: str) -> Any:
    """The field at a dotted path, or None where the content does not say."""
    here: Any = content
    for part in path.split("."):
        if isinstance(here, list) and part.isdigit() and int(part) < len(here):
            here = here[int(part)]
        elif isinstance(here, dict):
            here = here.get(part)
        else:
            return None
    return here


def _enter(here: Any, part: str) -> Any:
    """The container at `part`; a component given by its name alone becomes a mapping, a missing one is made."""
    place: Any = _index(here, part) if isinstance(here, list) else part
    inner = here[place] if isinstance(here, list) else here.get(place, {})
    if isinstance(inner, str):
        inner = {"kind": inner}
    if not isinstance(inner, dict | list):
        raise ValueError(f"'{part}' holds a value, not fields")
    here[place] = inner
    return inner


def _index(here: list[Any], part: str) -> int:
    if not part.isdigit() or int(part) >= len(here):
        raise ValueError(f"'{part}' is no place in a list of {len(here)}")
    return int(part)
