"""Mistakes in recipes, in one line each."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydantic import ValidationError

IN_YAML = {
    "tuple_type": "Input should be a list",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "Input should be a mapping"),
}
"""What pydantic calls by its Python name."""


def explain_errors(error: ValidationError) -> list[str]:
    """One line a mistake: dotted path, what is wrong, value found."""
    lines = []
    found = error.errors()
    for mistake in found:
        if mistake["type"] == "too_short" and any(_is_below(mistake["loc"], other["loc"]) for other in found):
            continue  # it is too short for want of the item that is wrong
        path = ".".join(str(part) for part in mistake["loc"])
        message = mistake["msg"].removeprefix("Value error, ")
        message = IN_YAML.get(mistake["type"], message)
        if mistake["type"] in ("too_short", "too_long"):
            message = re.sub(r"^(Tuple|Dictionary) should", "Should", message).replace(" after validation", "")
        shown = "" if isinstance(mistake["input"], Mapping) else f" (found {mistake['input']!r})"
        lines.append(f"{path + ': ' if path else ''}{message}{shown}")
    return lines


def lines_of(error: ValueError) -> list[str]:
    """What a wrong value was said to be, one line a mistake."""
    return explain_errors(error) if isinstance(error, ValidationError) else [str(error)]


def _is_below(place: tuple[int | str, ...], other: tuple[int | str, ...]) -> bool:
    return len(other) > len(place) and other[: len(place)] == place
