"""One interface over a folder, memory, S3, GCS and Azure: the few operations that durability is built from."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url

SCHEMES = ("file", "memory", "s3", "gs", "az")


class StoreError(RuntimeError):
    """The store did not do what was asked: unreachable, full, read-only or refusing."""


@dataclass(frozen=True)
class Entry:
    """What a store says about an object without reading it."""

    path: str
    size: int
    """Bytes."""
    modified: float
    """When it was written, in seconds since the epoch by the store's clock."""


class Store:
    """Objects by path. Every write is whole or absent; `create` has one winner, whoever asks and from wherever."""

    def __init__(self, url: str, backend: Any) -> None:
        self.url = url
        self._backend = backend

    @classmethod
    def open(cls, url: str) -> Store:
        """The store at a URL (`file:`, `s3:`, `gs:`, `az:`, `memory:`) or in a folder, which is made if missing.

        Credentials come from the environment, never from the URL: it is recorded.

        Raises:
            ValueError: the URL names no known kind of store, or holds a password.
            StoreError: the folder cannot be made or written.
        """
        parts = urlsplit(url)
        if parts.scheme and (parts.username or parts.password):
            raise ValueError("--store: a URL must not hold credentials; set them in the environment")
        if parts.scheme in ("", "file"):
            folder = Path(unquote(parts.path) if parts.scheme else url).expanduser().absolute()
            return cls(str(folder), _open_folder(folder))
        if parts.scheme not in SCHEMES:
            raise ValueError(f"--store: unknown scheme '{parts.scheme}'; allowed: a folder, {', '.join(SCHEMES)}")
        with _errors_named(url):
            return cls(url, from_url(url, **_options(parts.scheme)))

    @property
    def is_remote(self) -> bool:
        """Whether every request goes over a network and may cost money."""
        return urlsplit(self.url).scheme in ("s3", "gs", "az")

    def put(self, path: str, data: bytes) -> None:
        """Writes or replaces an object."""
        with _errors_named(path):
            self._backend.put(path, data)

    def create(self, path: str, data: bytes) -> bool:
        """Writes an object unless one is there; says whether this writer's bytes are the ones that stand.

        A success whose answer was lost is recognised: the object that is already there is then this very one. So
        `data` must name its writer.
        """
        try:
            with _errors_named(path, AlreadyExistsError):
                self._backend.put(path, data, mode="create")
        except AlreadyExistsError:
            return self.get(path) == data
        return True

    def get(self, path: str) -> bytes | None:
        """The bytes of an object, or None if there is none."""
        try:
            with _errors_named(path, FileNotFoundError):
                return bytes(self._backend.get(path).bytes())
        except FileNotFoundError:
            return None

    def exists(self, path: str) -> bool:
        """Whether there is an object at this path."""
        return self.look(path) is not None

    def look(self, path: str) -> Entry | None:
        """Size and time of an object, or None if there is none."""
        try:
            with _errors_named(path, FileNotFoundError):
                return _entry(self._backend.head(path))
        except FileNotFoundError:
            return None

    def clock(self) -> float:
        """The time by the store's clock, in seconds since the epoch: what ages of objects are counted from."""
        probe = f"probe/{uuid.uuid4().hex}"
        try:
            self.put(probe, b"what time is it?")
        except StoreError:
            if isinstance(self._backend, LocalStore):  # a full disk; its clock is this machine's, or close to it
                return time.time()
            raise
        entry = self.look(probe)
        self.delete([probe])
        if entry is None:
            raise StoreError(f"{probe}: what was written is not there")
        return entry.modified

    def entries(self, prefix: str) -> Iterator[Entry]:
        """All objects below a folder; slow on remote stores, so never on a hot path."""
        with _errors_named(prefix):
            for chunk in self._backend.list(prefix):
                yield from map(_entry, chunk)

    def paths(self, prefix: str) -> Iterator[str]:
        """The paths of all objects below a folder."""
        return (entry.path for entry in self.entries(prefix))

    def folders(self, prefix: str) -> list[str]:
        """The names of the folders directly below one."""
        with _errors_named(prefix):
            found = self._backend.list_with_delimiter(prefix)["common_prefixes"]
        if isinstance(self._backend, LocalStore):  # a disk keeps folders whose objects are gone
            found = [path for path in found if next(self.paths(path), None) is not None]
        return sorted(path.rsplit("/", 1)[-1] for path in found)

    def delete(self, paths: Iterable[str]) -> None:
        """Removes objects; one that is already gone is no error."""
        for path in paths:
            try:
                with _errors_named(path, FileNotFoundError):
                    self._backend.delete(path)
            except FileNotFoundError:
                pass

    def move(self, source: str, target: str) -> None:
        """Copies an object to another path, then removes it from the first; a missing source is no error."""
        data = self.get(source)
        if data is not None:
            self.put(target, data)
            self.delete([source])


class _errors_named:  # noqa: N801 - reads as a phrase after `with`
    """Turns the backend's errors into one line; the condition that the caller handles passes through."""

    def __init__(self, what: str, handled: type[BaseException] | tuple[()] = ()) -> None:
        self._what = what
        self._handled = handled

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, BaseError | OSError | ValueError) and not isinstance(error, self._handled):
            raise StoreError(f"{self._what}: {_first_line(error)}") from None


def _open_folder(folder: Path) -> LocalStore:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"--store: cannot make the folder {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(f"--store: the folder {folder} is not writable")
    return LocalStore(str(folder))


def _entry(record: Mapping[str, Any]) -> Entry:
    return Entry(record["path"], record["size"], record["last_modified"].timestamp())


def _options(scheme: str) -> dict[str, Any]:
    """Patience with a remote store: what is away for longer is for the engine, which tries the step again."""
    if scheme == "memory":
        return {}
    client: dict[str, Any] = {"connect_timeout": timedelta(seconds=5)}
    if scheme == "s3" and os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        client["allow_http"] = True
    backoff = {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=2)}
    return {
        "client_options": client,
        "retry_config": {"max_retries": 5, "retry_timeout": timedelta(seconds=30), "backoff": backoff},
    }


def _first_line(error: BaseException) -> str:
    """The cause in one line: backends append a debug dump, and their operating-system reason sits inside it."""
    text = " ".join(str(error).split("\n\nDebug source")[0].split())
    return re.sub(r"^Generic \w+ error: ", "", text) or type(error).__name__
