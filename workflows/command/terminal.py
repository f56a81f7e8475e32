"""What commands print with: to people on a terminal, to a file or a pipe, and as JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 200
"""Columns of tables that go into a file or a pipe: nothing is cut or wrapped for a terminal that is not there, unless
COLUMNS says how wide they shall be."""


def width(to_terminal: bool) -> int | None:
    """Columns of tables; None leaves it to rich, which asks COLUMNS, and the terminal.

    Args:
        to_terminal: whether they are printed on one.
    """
    return None if to_terminal or os.environ.get("COLUMNS", "").isdigit() else PIPE_WIDTH


out = Console(width=width(sys.stdout.isatty()))
err = Console(width=width(sys.stderr.isatty()), stderr=True)


def print_view(view: Group) -> None:
    """Tables as wide as the screen; lines of text whole, so that paths and commands can be copied."""
    for part in view.renderables:
        out.print(part, soft_wrap=isinstance(part, Text))


def table(*columns: str) -> Table:
    """An empty table that folds what is too wide."""
    made = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def print_line(console: Console, line: str) -> None:
    """One line, whole."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def warn(line: str) -> None:
    """One line to standard error."""
    print_line(err, line)


def print_json(value: Any) -> None:
    """JSON to standard output."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")
