"""Weights & Biases as tracking sees it: runs that are opened when a row comes, and that must be seen to close."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Mode = Literal["offline", "online"]

INIT_SECONDS = 20.0
"""Given to a server to answer when a W&B run is opened."""
END_SECONDS = 5.0
"""Given to W&B's own process to end after a failure."""
ROOM = 2**20
"""Bytes that must be free where W&B writes: it loses rows on a full disk without a word."""
NOT_IN_A_PROJECT = re.compile(r"[/\\#?%:]")


class TrackingFailed(RuntimeError):
    """W&B does not take what it is given; results are untouched."""


@dataclass(frozen=True)
class Chain:
    """One W&B run: what a workflow did at one place, through all its levels."""

    id: str
    name: str
    project: str
    group: str
    job_type: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Records to be looked at side by side."""

    columns: list[str]
    rows: list[list[Any]]


class Sink:
    """The W&B runs of one process; every error of W&B comes out as `TrackingFailed`, in one line."""

    def __init__(self, mode: Mode, folder: Path, patience: float) -> None:
        """Prepares a sink; W&B is not imported before the first row.

        Args:
            mode: `offline` writes files for later, `online` sends rows too.
            folder: W&B's files go to `wandb/` in it.
            patience: seconds that closing a W&B run may take.
        """
        self._mode: Mode = mode
        self._folder = folder
        self._patience = patience
        self._open: dict[str, Any] = {}
        self._charted: set[tuple[str, str]] = set()

    @property
    def open(self) -> list[str]:
        """The ids of the W&B runs that are open."""
        return list(self._open)

    def log(self, chain: Chain, step: int, row: Mapping[str, Any], tables: Mapping[str, Table] | None = None) -> None:
        """Adds a row to a W&B run, opening it if need be.

        Args:
            chain: the W&B run.
            step: of W&B: more than that of the row before.
            row: scalars and words by name.
            tables: to go with the row.

        Raises:
            TrackingFailed: W&B cannot be reached, is gone, or there is no room for its files.
        """
        with _errors_in_one_line():
            run = self._run(chain)
            shown = {name: _wandb_table(table) for name, table in (tables or {}).items()}
            run.log({**row, **shown}, step=step, commit=True)

    def configure(self, chain: Chain, settings: Mapping[str, Any]) -> None:
        """Adds to the config of a W&B run, opening it if need be.

        Raises:
            TrackingFailed: as for `log`.
        """
        with _errors_in_one_line():
            self._run(chain).config.update(dict(settings), allow_val_change=True)

    def chart_by_level(self, chain: Chain, kind: str) -> None:
        """Draws what steps of a kind report against the level, not against the number of the row.

        Raises:
            TrackingFailed: as for `log`.
        """
        if (chain.id, kind) not in self._charted:
            with _errors_in_one_line():
                self._run(chain).define_metric(f"{kind}/*", step_metric="level")
            self._charted.add((chain.id, kind))

    def close(self, chain_id: str, exit_code: int) -> None:
        """Closes a W&B run; when this returns, W&B has its rows.

        Raises:
            TrackingFailed: not all rows arrived in time, or there was no room for them.
        """
        with _errors_in_one_line():
            self._open.pop(chain_id).finish(exit_code=exit_code)
            self._require_room()

    def abandon(self) -> None:
        """Ends W&B in this process after a failure: the ids of its runs are taken until then."""
        self._open.clear()
        if "wandb" in sys.modules:
            ending = threading.Thread(target=_end_wandb, name="wandb-end", daemon=True)
            ending.start()
            ending.join(END_SECONDS)  # it waits without a bound of its own

    def _run(self, chain: Chain) -> Any:
        if chain.id not in self._open:
            self._open[chain.id] = self._start(chain)
        return self._open[chain.id]

    def _start(self, chain: Chain) -> Any:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._require_room()
        os.environ.setdefault("WANDB_SILENT", "true")  # `silent` below comes too late for what logging in prints
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # offline is offline
        os.environ.setdefault("WANDB_DATA_DIR", str(self._folder / "wandb"))  # tables would be staged in the home
        import wandb  # a second and many megabytes: only for those who track

        return wandb.init(
            project=NOT_IN_A_PROJECT.sub("-", chain.project)[:128],
            group=chain.group,
            id=chain.id,
            name=chain.name,
            job_type=chain.job_type,
            config=dict(chain.config),
            mode=self._mode,
            dir=str(self._folder),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                disable_job_creation=True,
                save_code=False,
                init_timeout=INIT_SECONDS,
                finish_timeout=self._patience,
                finish_timeout_raises=True,
                x_disable_meta=True,  # it holds the command line and paths of this machine
                x_disable_stats=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
            ),
        )

    def _require_room(self) -> None:
        with tempfile.TemporaryFile(dir=self._folder) as probe:
            probe.write(bytes(ROOM))
            probe.flush()
            os.fsync(probe.fileno())


def one_line(error: BaseException) -> str:
    """An error in one line, without the API key should W&B have put it there."""
    text = " ".join(str(error).split()) or type(error).__name__
    key = os.environ.get("WANDB_API_KEY")
    return text.replace(key, "***") if key else text


def _wandb_table(table: Table) -> Any:
    return sys.modules["wandb"].Table(columns=table.columns, data=table.rows, allow_mixed_types=True)


def _end_wandb() -> None:
    with contextlib.suppress(Exception):  # it fails again at what failed before
        sys.modules["wandb"].teardown()


@contextlib.contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # W&B raises its own errors, those of sockets, and those of the disk
        raise TrackingFailed(one_line(error)) from None
