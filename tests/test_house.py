"""The rules of the house, as tests: one command passes them all."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("cluster", "search_spaces", "tasks", "workflows")
SOURCES = [path for room in (*ROOMS, "tests") for path in (ROOT / room).rglob("*.py")]
TOP_LEVEL = {*ROOMS, "tests", "pyproject.toml", "README.md", "LICENSE", ".ci", ".gitignore"}


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "ruff", "check", "."],
        ["-m", "ruff", "format", "--check", "."],
        ["-m", "mypy"],
        ["-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
    ],
    ids=["ruff", "format", "mypy", "import-linter"],
)
def test_the_tool_finds_nothing(command: list[str]) -> None:
    completed = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stdout + completed.stderr


def test_every_file_is_short_and_named_for_what_it_holds() -> None:
    too_long = {str(path.relative_to(ROOT)) for path in SOURCES if len(path.read_text().splitlines()) > 400}
    assert not too_long
    vague = re.compile(r"(^|_)(utils?|helpers?|misc|common|manager|handler)(_|$)")
    assert not [path for path in SOURCES if vague.search(path.stem)]


def test_every_module_opens_with_a_sentence() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path.name != "__init__.py" and not path.read_text().startswith('"""')
    ]
    assert not silent


def test_the_top_level_holds_what_the_readme_promises() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    assert {line.split("/")[0] for line in listed.stdout.splitlines()} <= TOP_LEVEL


def test_tasks_import_without_ray_optuna_and_wandb() -> None:
    script = (
        "import sys\n"
        "for name in ('ray', 'optuna', 'wandb', 'obstore', 'typer', 'rich'): sys.modules[name] = None\n"
        "import importlib, pkgutil, tasks\n"
        "for found in pkgutil.walk_packages(tasks.__path__, 'tasks.'): importlib.import_module(found.name)\n"
    )
    completed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
