"""What people write by hand: frozen, and a mistake is one line at its place with the nearest allowed name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError, ValidationError

Place = tuple[str | int, ...]


class Checked(BaseModel):
    """A frozen model that offers the nearest field for a mistyped one."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        serialize_by_alias=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_fields(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        known = [field.alias or name for name, field in cls.model_fields.items()]
        unknown = [name for name in given if name not in known]
        if unknown:
            raise mistakes([((str(name),), f"unknown field; {nearest(name, known)}", given[name]) for name in unknown])
        return given


def nearest(name: object, known: Iterable[str]) -> str:
    """What may be meant by an unknown name, and all that is allowed."""
    names = list(known)
    close = get_close_matches(str(name), names, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}allowed: {', '.join(names)}"


def mistakes(found: Iterable[tuple[Place, str, Any]]) -> ValidationError:
    """Mistakes that no single field could know: of each the place, what is wrong, and the value found."""
    return ValidationError.from_exception_data(
        "mistakes",
        [
            {"type": PydanticCustomError("mistake", "{what}", {"what": what}), "loc": place, "input": value}
            for place, what, value in found
        ],
    )


def one_line_each(error: ValidationError) -> str:
    """The mistakes with their dotted paths, one a line."""
    lines = []
    for mistake in error.errors():
        path = ".".join(str(part) for part in mistake["loc"])
        what = mistake["msg"].removeprefix("Value error, ")
        shown = "" if isinstance(mistake["input"], Mapping) else f" (found {mistake['input']!r})"
        lines.append(f"{path + ': ' if path else ''}{what}{shown}")
    return "\n".join(lines)
