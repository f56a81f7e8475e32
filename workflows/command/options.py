"""The options that several commands share, and the command line that repeats them."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

import typer

from cluster.order import Terms
from workflows.command.exit_codes import Exit

MISUSED: Any = typer.BadParameter.__base__
"""What is wrong with a command line, in whichever library typer has it."""

STORE = "HEDGEROW_STORE"
"""The variable of the environment that names the store when `--store` does not."""
DEFAULT_STORE = "hedgerow-store"
DEFAULT_OUT = Path("hedgerow-results")
A_YEAR = 365 * 24 * 60


def read_folder(text: str | Path) -> Path:
    """The folder that an option names; `~` is the home folder, also where no shell has seen to that.

    Args:
        text: as it was typed, or a default.

    Raises:
        typer.BadParameter: it is empty.
    """
    if not str(text).strip():
        raise typer.BadParameter("it is empty; give a folder")
    return Path(text).expanduser()


def _not_empty(url: str) -> str:
    if not url.strip():
        raise typer.BadParameter("it is empty; give a folder or a URL")
    return url


def _number(least: float, most: float, allowed: str) -> Callable[[float], float]:
    """Refuses another number, and what is none: typer's own bounds let NaN be, or say of it what is not true."""

    def check(value: float) -> float:
        if not least <= value <= most:
            raise typer.BadParameter(f"allowed: {allowed} (found {value:g})")
        return value

    return check


RecipeName = Annotated[str, typer.Argument(help="A shipped recipe's name, or the path of a .yaml file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a field of the recipe.")]
StoreUrl = Annotated[
    str,
    typer.Option(
        "--store",
        envvar=STORE,
        callback=_not_empty,
        help="A folder, or s3://, gs://, az:// URL, that keeps all results.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]
Out = Annotated[
    Path,
    typer.Option("--out", parser=read_folder, metavar="FOLDER", help="Folder for tables, figures, offline tracking."),
]
Address = Annotated[str, typer.Option("--address", help="Ray: `local`, `auto`, or HOST:PORT of a cluster.")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="CPUs of a local session; all when not given.")]
Wandb = Annotated[
    str | None, typer.Option("--wandb", help="W&B: online, offline or disabled; online when a key exists.")
]
Checkpoint = Annotated[
    float,
    typer.Option(
        "--checkpoint",
        metavar="SECONDS",
        callback=_number(0.1, math.inf, "0.1 seconds or more"),
        help="Between checkpoints of a step.",
    ),
]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Stop everything at the first failed step.")]
StudyUrl = Annotated[
    str | None,
    typer.Option(
        "--study", metavar="URL", help="Optuna database: sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME."
    ),
]
Place = Annotated[
    list[str] | None,
    typer.Option(
        "--place",
        metavar="[KIND:]NAME=VALUE",
        help="What steps need of a node: gpus=0.25 or gpus=auto, memory=8 (GB) or memory=auto, or a label such as "
        "ray.io/accelerator-type=H100; for all steps, or those of one kind, as in train:gpus=0.5. GPUs for a kind that "
        "asks for none move its steps to a GPU, whose results differ from a CPU's in the last bits.",
    ),
]
WaitForNodes = Annotated[
    float,
    typer.Option(
        "--wait-for-nodes",
        metavar="SECONDS",
        callback=_number(0, math.inf, "0 seconds or more, or inf for as long as it takes"),
        help="How long a step waits when no node of a cluster can run it; inf for as long as it takes.",
    ),
]
Rejoin = Annotated[
    float,
    typer.Option(
        "--rejoin",
        metavar="MINUTES",
        callback=_number(0, A_YEAR, f"0 to {A_YEAR} minutes, a year"),
        help="How long to wait for the cluster at HOST:PORT when it was lost.",
    ),
]
Verify = Annotated[bool, typer.Option("--verify", help="Check every stored file against its digest before reuse.")]


@dataclass(frozen=True)
class Options:
    """How and where to run: nothing of it changes results.

    A field that bears a mark of typer's is an option of every command that runs a recipe; its flag is its name.
    """

    store: StoreUrl = DEFAULT_STORE
    out: Out = DEFAULT_OUT
    address: Address = "local"
    workers: Workers = None
    wandb: Wandb = None
    """W&B mode; online for those who have an API key, offline for others, when not given."""
    checkpoint: Checkpoint = Terms.checkpoint
    fail_fast: FailFast = False
    verify: Verify = False
    place: Place = None
    """What steps need of a node, as `[KIND:]NAME=VALUE`."""
    wait_for_nodes: WaitForNodes = 600.0
    """Seconds for which a step waits when no node of a cluster can run it; those of a local session never change."""
    rejoin: Rejoin = 10.0
    """Minutes to wait for a cluster that was lost."""
    study: str | None = None
    """Where a search shows itself as an Optuna study; in the folder of its report unless given. No other command has
    it, so it bears no mark."""

    def rejoins(self, code: Exit) -> bool:
        """Whether a run that lost its cluster waits for another at its address.

        Args:
            code: how the run ended; one that was asked to stop does not wait.
        """
        return code == Exit.INFRASTRUCTURE and self.address not in ("local", "auto") and self.rejoin > 0


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command for typer the marked fields of `Options`, in the place of its parameter `options`.

    Args:
        command: with a parameter `options`, which takes an `Options`.
    """
    shown = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=getattr(Options, name), annotation=hint)
        for name, hint in get_type_hints(Options, include_extras=True).items()
        if get_origin(hint) is Annotated
    ]
    described = signature(command, eval_str=True)
    own = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in described.parameters.values()]
    place = [parameter.name for parameter in own].index("options")

    @wraps(command)
    def told(**given: Any) -> None:
        options = Options(**{each.name: given.pop(each.name) for each in shown})
        command(**given, options=options)

    parameters = [*own[:place], *shown, *own[place + 1 :]]
    told.__signature__ = described.replace(parameters=parameters)  # type: ignore[attr-defined]
    return told


def resume_command(run: str, options: Options) -> str:
    """The command that goes on with a run where and how it ran.

    Args:
        run: its id.
        options: it ran with; those that are as they would be anyway are not repeated.
    """
    words = ["hedgerow", "search", "--resume", run] if options.study else ["hedgerow", "resume", run]
    usual = Options(store=os.environ.get(STORE) or DEFAULT_STORE)
    for field in fields(Options):
        value, flag = getattr(options, field.name), "--" + field.name.replace("_", "-")
        if value == getattr(usual, field.name):
            continue
        if value is True:
            words.append(flag)
        else:
            for each in value if isinstance(value, list) else [value]:
                words += [flag, str(each).removesuffix(".0") if isinstance(each, float) else str(each)]
    return shlex.join(words)
