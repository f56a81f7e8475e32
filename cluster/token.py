"""The token that a Ray cluster is joined with: where it lies, as Ray looks for it, and whether one is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

VALUE = "RAY_AUTH_TOKEN"
"""The variable that holds a token."""
FILE = "RAY_AUTH_TOKEN_PATH"
"""The variable that names a file which holds one."""
USUAL = ".ray/auth_token"
"""The file, below the home folder, in which Ray keeps one that it has made itself."""


@dataclass(frozen=True)
class Token:
    """A token, and where it was found."""

    value: str = field(repr=False)
    place: str
    """A variable, or a file."""


def find(environment: Mapping[str, str]) -> Token | None:
    """The token that Ray would find, in its order: the variable, the file that is named, the usual file.

    Raises:
        ValueError: a file is named that cannot be read, or is empty; Ray then looks no further. Or what was found can
            be no token, as it goes into a header of HTTP; it is never repeated.
    """
    found = _look(environment)
    if found and not (found.value.isascii() and found.value.isprintable()):
        raise ValueError(f"{found.place}: what it holds is no token, which is one line of printable ASCII characters")
    return found


def _look(environment: Mapping[str, str]) -> Token | None:
    if value := environment.get(VALUE, "").strip():
        return Token(value, VALUE)
    named = environment.get(FILE)
    try:
        value = file_of(environment).read_text("utf-8", errors="replace").strip()
    except OSError as error:
        if named:
            raise ValueError(f"{FILE}: {named}: {error.strerror}") from None
        return None
    if named and not value:
        raise ValueError(f"{FILE}: {named}: it is empty")
    return Token(value, named or f"~/{USUAL}") if value else None


def file_of(environment: Mapping[str, str]) -> Path:
    """The file in which Ray looks for a token; it need not be there. A `~` in the name of one is no home to Ray."""
    home = environment.get("HOME") or Path.home()
    return Path(environment.get(FILE) or f"{home}/{USUAL}")


def mode(environment: Mapping[str, str]) -> str:
    """How a cluster is joined, `token` or `disabled`: as RAY_AUTH_MODE says, or else with a token if there is one.

    A lone file counts: a head that is started beside it asks for its token, though nobody has set a mode. A cluster
    that asks for none lets in who shows one (Ray 2.60), so that having one shuts nobody out.
    """
    if said := environment.get("RAY_AUTH_MODE"):
        return said.lower()
    return "token" if environment.get(FILE) or _look(environment) else "disabled"
