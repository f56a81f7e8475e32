"""`hedgerow submit`: any command of hedgerow on a cluster, through Ray Jobs."""

from __future__ import annotations

import os
import platform
import secrets
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
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
from cluster.submission import STOPPING, Patience, insist, start
from cluster.submission import follow as follow_job
from cluster.submission import stop as stop_job
from cluster.token import find
from cluster.tree import LIMIT, Package, pack
from workflows.command.exit_codes import Exit
from workflows.command.options import AsJson
from workflows.command.recipe import BadRequest
from workflows.command.remote import Remote, in_tree, remote_command
from workflows.command.terminal import out, print_json, print_line, warn

ADDRESS = "RAY_API_SERVER_ADDRESS"
NOTE = (
    "submitted, it gets `--address auto` and an --out that outlives the job unless they are given; it needs a --store "
    "that all nodes reach"
)
"""What `hedgerow submit COMMAND --help` adds to the command's own help."""
KNOWN = {0, 1, 2, 3, 4, 75, 130}
"""Exit codes that mean something to whoever started hedgerow."""


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


def _named(job_id: str | None) -> str | None:
    if job_id == "":
        raise BadRequest("ID '': that names no job; `hedgerow submit status` lists those there are")
    return job_id


Server = Annotated[
    str,
    typer.Option("--address", envvar=ADDRESS, help="The job server: the dashboard's address, http://HOST:PORT."),
]
OtherServer = Annotated[
    str | None, typer.Option("--address", help="The job server, if it is not that of `hedgerow submit --address`.")
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="Of a job.", callback=_named)]
FIRST, LATER = 30.0, 300.0
"""Seconds of patience with a cluster that has not answered yet, whose address may be wrong, and with one that has."""
Seconds = Annotated[
    float | None,
    typer.Option(
        "--patience",
        min=0,
        show_default=f"{FIRST:g} until it has answered, then {LATER:g}",
        help="Seconds to try again for when the cluster does not answer.",
    ),
]


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
    patience: float | None


@app.callback()
def submit(
    context: typer.Context,
    address: Server = JOB_SERVER,
    tree: Annotated[str, typer.Option(help="Folder whose files go along, unless ignored; `none` sends none.")] = ".",
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait, and print the job's id alone.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Run again what has succeeded; what starts no run is run again anyway.")
    ] = False,
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
    patience: Seconds = None,
) -> None:
    """Run any command on a cluster."""
    context.obj = Sending(address, tree, detach, again, env or [], allow or [], max_size, insecure, patience)


@app.command(hidden=True, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def command(context: typer.Context, words: Annotated[list[str], typer.Argument()]) -> None:
    """Run a command on the cluster."""
    try:
        asked = remote_command(words)
    except typer.Exit:  # its help was printed
        print_line(out, NOTE)
        raise
    _submit(asked, context.obj)


@app.command()
def status(
    context: typer.Context,
    job_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Of a job; all that are known when not given.", callback=_named)
    ] = None,
    address: OtherServer = None,
    as_json: AsJson = False,
) -> None:
    """Say how the submitted commands stand."""
    server = _server(_looking(context.obj, address))
    jobs = server.jobs() if job_id is None else [_known(server, job_id)]
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
def stop(context: typer.Context, job_id: JobId, address: OtherServer = None) -> None:
    """Stop a submitted command, and wait until its steps have saved their state: submitted again, it goes on."""
    how = _looking(context.obj, address)
    server = _server(how)
    job = _known(server, job_id)
    if job.is_over:
        print_line(out, f"{job_id} is over already: {job.status}")
        return
    warn(f"asking {job_id} to save its state and stop; waiting until it is over, {STOPPING:g} s at most")
    ended = stop_job(server, job_id, Patience(_patience(how, LATER), warn))
    if ended is None or ended.is_over:
        print_line(out, f"{job_id} is over: {ended.status if ended else 'its head was started anew'}")
        return
    warn(f"{job_id} is not over after {STOPPING:g} s: {ended.status}; the same command submitted now would find it")
    warn(f"to see how it stands: {_call('status', job_id, server.url)}")
    raise typer.Exit(Exit.INFRASTRUCTURE)


@app.command()
def logs(
    context: typer.Context,
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more, and end as the job ends.")] = False,
    address: OtherServer = None,
    patience: Seconds = None,
) -> None:
    """Print what a submitted command has printed."""
    how = _looking(context.obj, address, patience)
    server = _server(how)
    _known(server, job_id)
    if follow:
        _follow(server, job_id, _patience(how, LATER))
    else:
        _write(server.logs(job_id))


def _submit(asked: Remote, how: Sending) -> None:
    folder = None if how.tree == "none" else Path(os.path.realpath(os.path.expanduser(how.tree)))
    sent = _environment(how.env, asked.words)
    with _as_requests():
        package = _package(folder, asked.store, how)
    words = in_tree(asked, folder, package.files if package else ())
    server = _server(how)
    patience = Patience(_patience(how, LATER), warn)
    _compare_versions(*insist(server.versions, patience))
    nonce = "" if asked.starts else secrets.token_hex(6)  # who looks again, wants to see how it is now
    request = Request(tuple(words), sent, package.digest if package else "", nonce)
    job, started = start(server, request, package, patience, how.again)
    if job.status == "SUCCEEDED" and not started:
        warn(f"{job.id} has succeeded already; `--again` runs it again")
        warn(f"to see what it said: {_call('logs', job.id, server.url)}")
        return
    warn(f"{'submitted' if started else 'found'} {job.id}")
    if how.detach:
        print_line(out, job.id)
        warn(f"to follow: {_call('logs', job.id, server.url, '--follow')}")
    else:
        _follow(server, job.id, _patience(how, LATER))


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
    if not how.tree:
        raise ValueError("--tree '': give a folder, or `none`")
    if folder is None:
        if how.allow:
            raise ValueError(f"--allow {how.allow[0]}: with --tree none no file goes along")
        return None
    stays = [Path(urlsplit(store).path)] if store and urlsplit(store).scheme in ("", "file") else []
    return pack(folder, how.max_size, how.allow, stays, secrets_of(os.environ))


def _looking(how: Sending, address: str | None, patience: float | None = None) -> Sending:
    """How to look at what was sent: perhaps elsewhere; a cluster that lets in anybody will do."""
    return replace(
        how,
        address=how.address if address is None else address,
        patience=how.patience if patience is None else patience,
        insecure=True,
    )


def _server(how: Sending) -> JobServer:
    """The job server, once it answers."""
    with _as_requests():
        token = find(os.environ)
        patience = Patience(_patience(how, FIRST), warn)
        return insist(lambda: JobServer.connect(how.address, token, how.insecure), patience)


def _patience(how: Sending, otherwise: float) -> float:
    return otherwise if how.patience is None else how.patience


def _compare_versions(ray: str, python: str) -> None:
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
        job = follow_job(server, job_id, _write, Patience(patience, warn))
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
