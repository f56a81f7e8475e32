"""The options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeName = Annotated[str, typer.Argument(help="A shipped recipe's name, or the path of a .yaml file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a field of the recipe.")]
StoreUrl = Annotated[
    str,
    typer.Option(
        "--store", envvar="HEDGEROW_STORE", help="A folder, or s3://, gs://, az:// URL, that keeps all results."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for tables, figures and offline tracking.")]
Address = Annotated[str, typer.Option("--address", help="Ray: `local`, `auto`, or HOST:PORT of a cluster.")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="CPUs of a local session; all when not given.")]
Wandb = Annotated[
    str | None, typer.Option("--wandb", help="W&B: online, offline or disabled; online when a key exists.")
]
Checkpoint = Annotated[float, typer.Option("--checkpoint", min=0.1, help="Seconds between checkpoints of a step.")]
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
        "--wait-for-nodes", metavar="SECONDS", min=0, help="How long a step waits when no node of a cluster can run it."
    ),
]
Rejoin = Annotated[
    float,
    typer.Option(
        "--rejoin", metavar="MINUTES", min=0, help="How long to wait for the cluster at HOST:PORT when it was lost."
    ),
]
Verify = Annotated[bool, typer.Option("--verify", help="Check every stored file against its digest before reuse.")]

DEFAULT_WAIT_FOR_NODES = 600.0
DEFAULT_REJOIN = 10.0
DEFAULT_STORE = "hedgerow-store"
DEFAULT_OUT = Path("hedgerow-results")
