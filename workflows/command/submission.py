"""`hedgerow submit`: any command of hedgerow on a cluster, through Ray Jobs."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from typer.core import TyperGroup

from cluster.job_server import Job, JobServer, Request
from cluster.secret import names_secret, secrets_of
from cluster.session import ClusterUnreachable
from cluster.settings import JOB_SERVER
from cluster.submission import Patience, follow, start
from cluster.token import find
from cluster.tree import LIMIT, Package, pack
from workflows.command.exit_codes import Exit
from workflows.command.options import AsJson
from workflows.command.recipe import BadRequest
from workflows.command.terminal import out, print_json, print_line, warn

ADDRESS = "RAY_API_SERVER_ADDRESS"
HERE = {"submit", "cluster", "methods", "schema", "top"}
"""Commands that would do nothing on a cluster that they do not do here."""
OUT = "~/hedgerow-results"
"""Where reports go unless asked otherwise: below the home folder of whoever runs the cluster's head."""
SHARED = ("file", "s3", "gs", "az")
KNOWN = {0, 1, 2, 3, 4, 75, 130}
"""Exit codes that mean something to whoever started hedgerow."""
_Misused: Any = typer.BadParameter.__base__  # what is wrong with a command line, in whichever library typer has it


class _Submission(TyperGroup):
    """A group whose unknown commands are those of hedgerow, to run on the cluster."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["command", *args])


app = typer.Typer(
    cls=_Submission,
    help="Run any command on a cluster: `hedgerow submit run quickstart --store s3://...`; it goes on when you leave.",
    no_args_is_help=True,
    subcommand_metavar="COMMAND [ARGS]...",
)

Server = Annotated[
    str,
    typer.Option("--address", envvar=ADDRESS, help="The job server: the dashboard's address, http://HOST:PORT."),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="Of a job.")]
Seconds = Annotated[
    float, typer.Option("--patience", min=0, help="Seconds to try again for when the cluster does not answer.")
]
DEFAULT_PATIENCE = 300.0


@dataclass(frozen=True)
class Sending:
    """Where a command is sent, and how: the options of `hedgerow submit` itself."""

    address: str
    tree: str
    detach: bool
    again: bool
    env: Sequence[str]
    allow: Sequence[str]
    max_size: float
    insecure: bool
    patience: float


@app.callback()
def submit(
    context: typer.Context,
    address: Server = JOB_SERVER,
    tree: Annotated[str, typer.Option(help="Folder whose files go along, unless ignored; `none` sends none.")] = ".",
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait, and print the job's id alone.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Run again what has succeeded before.")] = False,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A variable that the job gets too; all there can read it.")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="A file that may go although it looks like a secret.")
    ] = None,
    max_size: Annotated[
        float, typer.Option(min=0, metavar="MB", help="Most that the files may have together.")
    ] = LIMIT,
    insecure: Annotated[bool, typer.Option("--insecure", help="Also to a cluster that lets in anybody.")] = False,
    patience: Seconds = DEFAULT_PATIENCE,
) -> None:
    """Run any command on a cluster."""
    context.obj = Sending(address, tree, detach, again, env or [], allow or [], max_size, insecure, patience)


@app.command(hidden=True, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def command(context: typer.Context, words: Annotated[list[str], typer.Argument()]) -> None:
    """Run a command on the cluster."""
    _submit(words, context.obj)


@app.command()
def status(
    context: typer.Context,
    job_id: Annotated[str, typer.Argument(metavar="[ID]", help="Of a job; all that are known when not given.")] = "",
    address: Server = "",
    as_json: AsJson = False,
) -> None:
    """Say how the submitted commands stand."""
    server = _server(address or context.obj.address)
    jobs = [_known(server, job_id)] if job_id else server.jobs()
    if as_json:
        print_json([asdict(job) for job in jobs])
        return
    for job in jobs:
        print_line(out, f"{job.id}  {job.status}{_duration(job)}  hedgerow {job.command}")
    if job_id and jobs[0].status == "FAILED":
        print_line(out, jobs[0].message)
    if not jobs:
        print_line(out, f"{server.url}: no command was submitted")


@app.command()
def stop(context: typer.Context, job_id: JobId, address: Server = "") -> None:
    """Stop a submitted command: its steps save their state, and submitting it again goes on from there."""
    server = _server(address or context.obj.address)
    job = _known(server, job_id)
    if job.is_over or not server.stop(job_id):
        print_line(out, f"{job_id} is over already: {job.status}")
    else:
        print_line(out, f"{job_id} was asked to save its state and stop")


@app.command()
def logs(
    context: typer.Context,
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more, and end as the job ends.")] = False,
    address: Server = "",
    patience: Seconds = DEFAULT_PATIENCE,
) -> None:
    """Print what a submitted command has printed."""
    server = _server(address or context.obj.address)
    _known(server, job_id)
    if follow:
        _follow(server, job_id, patience)
    else:
        _write(server.logs(job_id))


def _submit(words: Sequence[str], how: Sending) -> None:
    folder = None if how.tree == "none" else Path(how.tree).resolve()
    asked = remote_command(words)
    sent = _environment(how.env, asked.words)
    with _as_requests():
        package = _package(folder, asked.store, how)
    words = _in_tree(asked, folder, package.files if package else ())
    server = _server(how.address, how.insecure)
    _compare_versions(server)
    request = Request(tuple(words), sent, package.digest if package else "")
    job, started = start(server, request, package, Patience(how.patience, warn), how.again)
    if job.status == "SUCCEEDED" and not started:
        warn(f"{job.id} has succeeded already; `--again` runs it again")
        warn(f"to see what it said: {_call('logs', job.id, server.url)}")
        return
    warn(f"{'submitted' if started else 'found'} {job.id}")
    if how.detach:
        print_line(out, job.id)
        warn(f"to follow: {_call('logs', job.id, server.url, '--follow')}")
    else:
        _follow(server, job.id, how.patience)


@dataclass(frozen=True)
class Remote:
    """A command as it has to be given on the cluster."""

    words: list[str]
    """Without the program's name."""
    store: str
    """The store it names; empty for commands that use none."""
    recipe: str
    """The path of its recipe; empty for commands that read none, and for recipes that come with hedgerow."""


def remote_command(words: Sequence[str]) -> Remote:
    """Reads a command as the cluster will, and puts in what it needs there.

    Raises:
        BadRequest: there is no such command, it is misused, or its store is none that a cluster can reach.
    """
    name, *rest = words
    read = read_command(words)
    made = [name, *rest]
    given = {  # by what is typed, whatever the command's own function calls it
        option.opts[0]: (str(read.params[option.name]), read.get_parameter_source(option.name).name)
        for option in read.command.params
        if option.name in read.params
    }
    store, source = given.get("--store", ("", ""))
    if store:
        _check_store(store, source)
        made += [] if source == "COMMANDLINE" else ["--store", store]
    if "--address" in given and given["--address"][1] != "COMMANDLINE":
        made += ["--address", "auto"]
    if "--out" in given:
        made += _out_of(*given["--out"])
    return Remote(made, store, recipe_file(read.params))


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
        return commands[name].make_context(f"hedgerow {name}", list(rest))
    except _Misused as error:
        raise BadRequest(f"{name}: {error.format_message()}") from None


def recipe_file(options: Mapping[str, Any]) -> str:
    """The path of a command's recipe; empty for commands that read none, and for recipes that come with hedgerow."""
    recipe = str(options.get("recipe", ""))
    return recipe if "/" in recipe or recipe.endswith((".yaml", ".yml")) else ""


def _check_store(store: str, source: str) -> None:
    """Whether the store may be one that all nodes see; whether they do is for `doctor`."""
    parts = urlsplit(store)
    where = "give a URL (s3://, gs://, az://) or the absolute path of a folder that all nodes share"
    if source == "DEFAULT":
        raise BadRequest(f"--store: results in a folder of the head's would be lost: {where}")
    if parts.username or parts.password:
        raise BadRequest("--store: a URL must not hold credentials; the cluster's nodes have them in their environment")
    if parts.scheme not in ("", *SHARED) or (parts.scheme in ("", "file") and not Path(parts.path).is_absolute()):
        raise BadRequest(f"--store {store}: no node of a cluster finds that: {where}")


def _out_of(folder: str, source: str) -> list[str]:
    """What is to be put in so that reports outlive the folder of the job, which Ray removes."""
    if source != "COMMANDLINE":
        return ["--out", OUT]
    if not folder.startswith(("/", "~/")):
        raise BadRequest(f"--out {folder}: it would be gone with the job: give an absolute path, or one that begins ~/")
    return []


def _environment(names: Sequence[str], words: Sequence[str]) -> dict[str, str]:
    """The variables that go along: what W&B shall call things, and what was asked for."""
    for name, value in secrets_of(os.environ).items():
        if any(value in word for word in words):
            raise BadRequest(f"submit: the command holds the value of {name}, and whoever reaches the cluster sees it")
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise BadRequest("\n".join(f"--env {name}: there is no such variable here" for name in missing))
    for name in names:
        if names_secret(name):
            warn(f"--env {name}: whoever reaches the cluster can read it; better set it in the cluster's environment")
    return {name: os.environ[name] for name in sorted({*names, *filter(_is_about_tracking, os.environ)})}


def _is_about_tracking(name: str) -> bool:
    of_this_machine = name.endswith("_DIR") or name == "WANDB_SERVICE"
    return name.startswith("WANDB_") and not of_this_machine and not names_secret(name)


def _package(folder: Path | None, store: str, how: Sending) -> Package | None:
    if folder is None:
        return None
    stays = [Path(urlsplit(store).path)] if store and urlsplit(store).scheme in ("", "file") else []
    return pack(folder, how.max_size, how.allow, stays, secrets_of(os.environ))


def _in_tree(asked: Remote, folder: Path | None, files: Sequence[str]) -> list[str]:
    """The command with the path of its recipe as it is in the files that go along."""
    if not asked.recipe:
        return asked.words
    path = Path(asked.recipe).resolve()
    if not path.is_file():
        raise BadRequest(f"recipe {asked.recipe}: there is no such file")
    if folder is None or not path.is_relative_to(folder):
        raise BadRequest(f"recipe {asked.recipe}: it does not go along: --tree must be a folder that holds it")
    there = path.relative_to(folder).as_posix()
    if there not in files:
        raise BadRequest(f"recipe {asked.recipe}: it does not go along, for an ignore file names it")
    return [there if word == asked.recipe else word for word in asked.words]


def _server(address: str, insecure: bool = True) -> JobServer:
    with _as_requests():
        return JobServer.connect(address, find(os.environ), insecure)


def _compare_versions(server: JobServer) -> None:
    ray, python = server.versions()
    for what, here, there in (("Ray", version("ray"), ray), ("Python", platform.python_version(), python)):
        if there and there != here:
            warn(f"the cluster has {what} {there}, this machine {here}: the command runs with the cluster's")


def _known(server: JobServer, job_id: str) -> Job:
    job = server.job(job_id)
    if job is None:
        raise BadRequest(f"{server.url} knows no job {job_id}; `hedgerow submit status` lists those there are")
    return job


def _follow(server: JobServer, job_id: str, patience: float) -> None:
    """Prints what a job prints, and ends as it does."""
    try:
        job = follow(server, job_id, _write, Patience(patience, warn))
    except ClusterUnreachable as error:
        warn(f"hedgerow: {error}")
        warn(f"to follow again: {_call('logs', job_id, server.url, '--follow')}")
        raise typer.Exit(Exit.INFRASTRUCTURE) from None
    except KeyboardInterrupt:
        warn(f"left {job_id}, which goes on")
        warn(f"to follow again: {_call('logs', job_id, server.url, '--follow')}")
        warn(f"to stop it: {_call('stop', job_id, server.url)}")
        raise typer.Exit(Exit.INTERRUPTED) from None
    if code := code_of(job):
        if job.exit_code not in KNOWN:  # then it had no time to say why itself
            warn(f"{job.id}: {job.status}: {job.message.split(', last available logs')[0]}")
        raise typer.Exit(code)


def code_of(job: Job) -> int:
    """The exit code of a job that is over, as if its command had run here."""
    if job.status == "SUCCEEDED":
        return Exit.DONE
    if job.status == "STOPPED":
        return Exit.INTERRUPTED
    if job.exit_code in KNOWN:
        return job.exit_code
    return Exit.INFRASTRUCTURE  # killed, or never started


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _call(what: str, job_id: str, url: str, *more: str) -> str:
    where = [] if url in (JOB_SERVER, os.environ.get(ADDRESS)) else ["--address", url]
    return shlex.join(["hedgerow", "submit", what, job_id, *more, *where])


def _duration(job: Job) -> str:
    return f" {(job.ended or time.time()) - job.started:.0f} s" if job.started else ""


@contextmanager
def _as_requests() -> Iterator[None]:
    """What is wrong with the request ends it before any work."""
    try:
        yield
    except ValueError as error:
        raise BadRequest(str(error)) from None
