"""`hedgerow cluster manifest`: writes the files that make a cluster."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin

import typer

from workflows.command.options import AsJson, read_folder
from workflows.command.recipe import BadRequest, read_setting
from workflows.command.remote import check_command
from workflows.command.terminal import out, print_json, print_line

if TYPE_CHECKING:
    from cluster.manifests import Group, Manifest

cluster = typer.Typer(help="Make a cluster.", no_args_is_help=True)
EXAMPLE = "gpu:cpus=8,gpus=1,type=NVIDIA-H100,max=4,spot"


@cluster.callback()
def _cluster() -> None:
    """Make a cluster."""


@cluster.command()
def manifest(
    target: Annotated[str, typer.Argument(help="kuberay, slurm, aws, gcp or local.")],
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- COMMAND...]", help="What to run, such as `run imp-cifar10 --set levels=8`."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the cluster; `hedgerow` when not given.")] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", envvar="HEDGEROW_STORE", help="Where results are kept: a URL, or a shared folder."),
    ] = None,
    image: Annotated[str | None, typer.Option(help="kuberay: the image that its nodes run.")] = None,
    group: Annotated[
        list[str] | None, typer.Option(metavar="NAME:FIELD=VALUE,...", help=f"A kind of workers, such as {EXAMPLE}.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Any other field; --fields lists them.")
    ] = None,
    fields: Annotated[bool, typer.Option("--fields", help="List the target's fields, and write nothing.")] = False,
    folder: Annotated[
        Path, typer.Option("--out", parser=read_folder, metavar="FOLDER", help="Folder to write to.")
    ] = Path("hedgerow-cluster"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that were changed.")] = False,
    to_stdout: Annotated[bool, typer.Option("--stdout", help="Print the files, and write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the files that make a cluster and run hedgerow on it: tuned, checked, guarded by a token."""
    kind = _kind(target)
    if to_stdout and as_json and not fields:
        raise BadRequest("--stdout prints the files, --json what was written; give one of them")
    if fields:
        records = fields_of(kind)
        print_json(records) if as_json else _print_fields(records)
        return
    given = {"name": name, "store": store, "image": image, "command": tuple(command) if command else None}
    content = {field: value for field, value in given.items() if value is not None}
    made = read(target, content, group or [], overrides or [])
    files = made.files()
    steps = made.steps(str(folder))
    if to_stdout:
        for file, text in files.items():
            out.file.write(f"# {file}\n{text}")
    else:
        write(folder, files, force)
    if as_json:
        print_json({"target": target, "files": [str(folder / file) for file in files], "next": steps})
    elif not to_stdout:
        for file in files:
            print_line(out, f"wrote {folder / file}")
        print_line(out, "next:")
        for step in steps:
            print_line(out, f"  {step}")


def read(target: str, content: dict[str, Any], groups: list[str], overrides: list[str]) -> Manifest:
    """The manifest that the options describe.

    Args:
        target: what it is for.
        content: its fields.
        groups: worker groups as `NAME:field=value,...`.
        overrides: further fields as `field=value`, where the value is YAML.

    Raises:
        BadRequest: one line for each mistake.
    """
    from workflows.mistakes import lines_of

    kind = _kind(target)
    for option, field, given in (("--group", "groups", groups), ("--image", "image", "image" in content)):
        if given and field not in kind.model_fields:
            raise BadRequest(f"{target}: {option} is not for it, but for {', '.join(_kinds_with(field))}")
    if groups:
        content["groups"] = tuple(_group(text) for text in groups)
    for override in overrides:
        _override(kind, content, override)
    _refuse_unknown(target, kind, content)
    mistakes: list[str] = []
    try:
        made = kind.model_validate(content)
        made.files()
    except ValueError as error:
        mistakes += (f"{target}: {line}" for lines in lines_of(error) for line in lines.splitlines())
    command = content.get("command", kind.model_fields["command"].default)
    try:
        if isinstance(command, list | tuple):
            check_command([str(word) for word in command], kind.sees_files)
    except BadRequest as error:
        mistakes += (f"{target}: command: {line}" for line in str(error).splitlines())
    if mistakes:
        raise BadRequest("\n".join(mistakes))
    return made


def _override(kind: type[Manifest], content: dict[str, Any], override: str) -> None:
    field, value = read_setting(override, "field=value")
    if field in kind.model_fields:
        about = kind.model_fields[field]
        if value is None and about.default is not None:
            raise BadRequest(f"--set {override}: {field} needs a value")
        if get_origin(about.annotation) is tuple and not isinstance(value, list):
            example = shlex.quote(f"{field}=[{json.dumps(override.partition('=')[2])}]")
            raise BadRequest(f"--set {override}: {field} is a list; write it as --set {example}")
    if field in content:
        variable = " (or HEDGEROW_STORE)" if field == "store" else ""
        raise BadRequest(f"--set {override}: another --set, or an option{variable}, gives {field} too; leave one out")
    content[field] = value


def _refuse_unknown(target: str, kind: type[Manifest], content: Mapping[str, Any]) -> None:
    from difflib import get_close_matches

    allowed = kind.model_fields
    for field in content:
        if field not in allowed:
            close = get_close_matches(field, allowed, n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise BadRequest(f"{target}: it has no field {field}; {hint}allowed: {', '.join(allowed)}")


def write(folder: Path, files: dict[str, str], force: bool) -> None:
    """Writes the files, or none of them.

    Args:
        folder: where to; made when it is not there.
        files: text by name.
        force: whether files that hold something else may be overwritten.

    Raises:
        BadRequest: a file is there already and holds something else, or the folder cannot be written to.
    """
    try:
        for part in (folder, *folder.parents):
            if part.is_file():
                raise BadRequest(f"--out {folder}: {part} is a file; give a folder")
        for name, text in files.items():
            path = folder / name
            if path.exists() and path.read_bytes() != text.encode() and not force:
                raise BadRequest(f"{path} is there already and differs; --force overwrites it")
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise BadRequest(f"--out {folder}: cannot be written to: {error.strerror}") from None


def fields_of(kind: type[Manifest]) -> list[dict[str, str]]:
    """Each field of a target as JSON: name, default, what it is."""
    from pydantic_core import PydanticUndefined

    return [
        {
            "field": name,
            "default": ""
            if field.get_default() is PydanticUndefined
            else str(field.get_default(call_default_factory=True)),
            "what": field.description or "",
        }
        for name, field in kind.model_fields.items()
    ]


def _print_fields(records: list[dict[str, str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("field", "default", "what"):
        table.add_column(column)
    for record in records:
        table.add_row(*(Text(value) for value in record.values()))
    out.print(table)


def _kind(target: str) -> type[Manifest]:
    from cluster.manifests import TARGETS

    if target not in TARGETS:
        raise BadRequest(f"no manifest is called '{target}'; allowed: {', '.join(TARGETS)}")
    return TARGETS[target]


def _kinds_with(field: str) -> list[str]:
    from cluster.manifests import TARGETS

    return [name for name, kind in TARGETS.items() if field in kind.model_fields]


def _group(text: str) -> Group:
    from cluster.manifests import Group
    from workflows.mistakes import lines_of

    try:
        return Group.parse(text)
    except ValueError as error:
        raise BadRequest("\n".join(f"--group {text}: {line}" for line in lines_of(error))) from None
