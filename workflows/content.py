"""The content of recipes: read from YAML files, and changed field by field before it is understood."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

from search_spaces.shelf import Shelf

SHIPPED = files("workflows") / "recipes"
RECIPES = Shelf("recipe", "a `kind`", SHIPPED)
shipped_recipes = RECIPES.names
read_content = RECIPES.read


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
