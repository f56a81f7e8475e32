"""YAML files by name: those that come with hedgerow, or somebody's own."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Shelf:
    """One kind of file, and where those of it lie that come with hedgerow."""

    noun: str
    """What one is called: recipe, space."""
    holds: str
    """What its mapping has to hold."""
    folder: Traversable

    def names(self) -> dict[str, str]:
        """Those that come with hedgerow: name and first comment line."""
        found = {}
        for entry in sorted(self.folder.iterdir(), key=lambda entry: entry.name):
            if entry.name.endswith(".yaml"):
                found[entry.name.removesuffix(".yaml")] = entry.read_text().splitlines()[0].lstrip("# ")
        return found

    def read(self, name: str) -> dict[str, Any]:
        """What a file says.

        Args:
            name: of one that comes with hedgerow, or the path of a .yaml file.

        Raises:
            ValueError: there is no such file, or it holds something else.
        """
        noun = self.noun
        looks_like_path = "/" in name or name.endswith((".yaml", ".yml"))
        source = Path(name) if looks_like_path else self.folder / f"{name}.yaml"
        if not looks_like_path and not source.is_file():
            known = list(self.names())
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise ValueError(
                f"no {noun} is called '{name}'; {hint}shipped: {', '.join(known)}; or give a path to a .yaml file"
            )
        try:
            content = yaml.safe_load(source.read_text())
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise ValueError(f"{noun} {name}: cannot be read: {reason}") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            what = getattr(error, "problem", None) or "unreadable"
            raise ValueError(f"{noun} {name}{where}: not YAML: {what}") from None
        if not isinstance(content, dict):
            found = "an empty file" if content is None else f"a {type(content).__name__}"
            raise ValueError(f"{noun} {name}: a {noun} is a mapping with {self.holds}, not {found}")
        return content
