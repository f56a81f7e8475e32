"""A command of hedgerow as it has to be given on a cluster, checked as far as that can be done here."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from workflows.command.options import MISUSED
from workflows.command.recipe import BadRequest, load_recipe

HERE = {"submit", "cluster", "methods", "schema", "top"}
"""Commands that would do nothing on a cluster that they do not do here."""
OUT = "~/hedgerow-results"
"""Where reports go unless asked otherwise: below the home folder of whoever runs the cluster's head."""
SHARED = ("s3", "gs", "az")
"""Schemes of stores that nodes reach, each with a bucket."""


@dataclass(frozen=True)
class Remote:
    """A command as it has to be given on the cluster."""

    words: list[str]
    """Without the program's name."""
    store: str
    """The store it names; empty for commands that use none."""
    recipe: str
    """The path of its recipe; empty for commands that read none, and for recipes that come with hedgerow."""
    starts: bool
    """Whether it starts a run, or goes on with one, so that there must be only one of it at a time."""


def remote_command(words: Sequence[str]) -> Remote:
    """Reads a command as the cluster will, and puts in what it needs there.

    Raises:
        BadRequest: there is no such command, it is misused, its recipe is wrong, or its store is none that a cluster
            can reach.
    """
    from cluster.manifests.manifest import STARTING

    name, *rest = words
    read = read_command(words)
    made = [name, *rest]
    given = {  # by what is typed, whatever the command's own function calls it
        option.opts[0]: (str(read.params[option.name]), read.get_parameter_source(option.name).name)
        for option in read.command.params
        if option.name in read.params
    }
    store, source = given.get("--store", ("", ""))
    if "--store" in given:
        _check_store(store, source)
        made += [] if source == "COMMANDLINE" else ["--store", store]
    if "--address" in given and given["--address"][1] != "COMMANDLINE":
        made += ["--address", "auto"]
    if "--out" in given:
        made += _out_of(*given["--out"])
    _check_recipe(name, read.params)
    return Remote(made, store, recipe_file(read.params), name in STARTING)


def read_command(words: Sequence[str]) -> Any:
    """A command's options, as `hedgerow` itself reads them.

    Args:
        words: of the command, without the program's name.

    Raises:
        BadRequest: there is no such command for a cluster, or it is misused.
    """
    from typer.main import get_command

    from workflows.command.cli import app as hedgerow

    name, *rest = words
    commands: dict[str, Any] = get_command(hedgerow).commands  # type: ignore[attr-defined]
    if name not in commands or name in HERE:
        there = ", ".join(sorted({*commands} - HERE))
        raise BadRequest(f"submit: '{name}' is no command for a cluster; there are {there}")
    try:
        return commands[name].make_context(f"hedgerow {name}", list(rest), help_option_names=["-h", "--help"])
    except MISUSED as error:
        raise BadRequest(f"{name}: {error.format_message()}") from None


def recipe_file(options: Mapping[str, Any]) -> str:
    """The path of a command's recipe; empty for commands that read none, and for recipes that come with hedgerow."""
    recipe = str(options.get("recipe", ""))
    return recipe if "/" in recipe or recipe.endswith((".yaml", ".yml")) else ""


def check_command(command: Sequence[str], sees_files: bool) -> None:
    """Whether hedgerow will understand the command, as far as that can be told without its data and its store.

    Args:
        command: as on hedgerow's command line; one that starts no run is for the manifest to refuse.
        sees_files: whether a recipe's file that lies here is there when the command runs.

    Raises:
        BadRequest: it is misused, its recipe is wrong, or will not be there.
    """
    from cluster.manifests.manifest import STARTING

    words = list(command[1:] if command[0:1] == ["hedgerow"] else command)
    if not words or words[0] not in STARTING:
        return
    options = read_command(words).params
    path = recipe_file(options)
    if path and not sees_files:
        raise BadRequest(
            f"recipe {path}: it is not in the image; name one that comes with hedgerow, "
            "or run this one with `hedgerow submit` on the cluster of cluster.yaml, which sends it along"
        )
    _check_recipe(words[0], options)


def _check_recipe(name: str, options: Mapping[str, Any]) -> None:
    """Whether the recipe of a command, if it reads one, can be understood; its data need not be here."""
    if "recipe" not in options:
        return
    overrides = options["overrides"] or []
    if name == "search":
        from workflows.command.search import as_search, check_asked

        check_asked(options["recipe"], options["go_on"], overrides)
        if not options["go_on"]:  # what it goes on with, the store alone knows
            loaded = load_recipe(options["recipe"], overrides, check=False)
            as_search(loaded.workflow, f"recipe {loaded.name}")
    else:
        load_recipe(options["recipe"], overrides, check=False)


def in_tree(asked: Remote, folder: Path | None, files: Sequence[str]) -> list[str]:
    """The command with the path of its recipe as it is in the files that go along.

    Args:
        asked: the command.
        folder: whose files go along; None if none do.
        files: that go along, by their paths below it.

    Raises:
        BadRequest: the recipe is not among them.
    """
    if not asked.recipe:
        return asked.words
    path = Path(asked.recipe).resolve()
    if folder is None or not path.is_relative_to(folder):
        raise BadRequest(f"recipe {asked.recipe}: it does not go along: --tree must be a folder that holds it")
    there = path.relative_to(folder).as_posix()
    if there not in files:
        raise BadRequest(f"recipe {asked.recipe}: it does not go along, for an ignore file names it")
    return [there if word == asked.recipe else word for word in asked.words]


def _check_store(store: str, source: str) -> None:
    """Whether the store may be one that all nodes see; whether they do is for `doctor`."""
    where = "give a URL (s3://, gs://, az:// and a bucket) or the absolute path of a folder that all nodes share"
    if source == "DEFAULT":
        raise BadRequest(f"--store: results in a folder of the head's would be lost: {where}")
    try:
        parts = urlsplit(store)
    except ValueError:  # such as [ without ]
        raise BadRequest(f"--store {shlex.quote(store)}: that is no URL: {where}") from None
    if parts.username or parts.password:
        raise BadRequest("--store: a URL must not hold credentials; the cluster's nodes have them in their environment")
    is_folder = parts.scheme in ("", "file") and not parts.netloc and Path(parts.path).is_absolute()
    if not is_folder and not (parts.scheme in SHARED and parts.netloc):
        raise BadRequest(f"--store {shlex.quote(store)}: no node of a cluster finds that: {where}")


def _out_of(folder: str, source: str) -> list[str]:
    """What is to be put in so that reports outlive the folder of the job, which Ray removes."""
    if source != "COMMANDLINE":
        return ["--out", OUT]
    if not folder.startswith(("/", "~/")):
        raise BadRequest(f"--out {folder}: it would be gone with the job: give an absolute path, or one that begins ~/")
    return []
