"""One interface over a folder, memory, S3, GCS and Azure: the few operations that durability is built from."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url

from cluster.secret import without_secrets

SCHEMES = ("file", "memory", "s3", "gs", "az")
ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
"""Where the environment names a server of one's own; without https only if it says so."""
METADATA_SERVICE = "169.254.169.254"
"""Whom clients of every cloud ask for credentials when the environment holds none."""
PART = 8 * 2**20
"""Bytes: an object of more than two parts is read from a remote store in parts, several at once."""
SIDE_BY_SIDE = 8
"""Transfers at once between a process and a remote store."""
CREATE_PAUSES = (0.0, 0.1, 0.4, 1.0)
"""Seconds before each look at an object that was said to be there and could not be read."""


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


BRIEF = 4.0
"""Seconds for a request that must not hold up its sender: a lease lives for a few of them."""


class Store:
    """Objects by path. Every write is whole or absent; `create` has one winner, whoever asks and from wherever."""

    def __init__(self, url: str, backend: Any) -> None:
        self.url = url
        self._backend = backend
        self._root = os.path.realpath(url) if url.startswith("/") else None

    @classmethod
    def open(cls, url: str, make: bool = True) -> Store:
        """The store at a URL (`file:`, `s3:`, `gs:`, `az:`, `memory:`) or in a folder.

        Credentials come from the environment, never from the URL: it is recorded.

        Args:
            url: of the store.
            make: whether a folder that is missing is made.

        Raises:
            ValueError: the URL names no known kind of store, or holds more than a place: a password, a signature.
            StoreError: the folder is missing, or cannot be made or written.
        """
        parts = urlsplit(url)
        if parts.scheme and (parts.username or parts.password):
            raise ValueError("--store: a URL must not hold credentials; set them in the environment")
        if parts.scheme and (parts.query or parts.fragment):
            raise ValueError(
                "--store: a URL ends with its path: keys, tokens and options after `?` or `#` come from the environment"
            )
        if parts.scheme in ("", "file"):
            folder = Path(unquote(parts.path) if parts.scheme else url).expanduser().absolute()
            return cls(str(folder), _open_folder(folder, make))
        if parts.scheme not in SCHEMES:
            raise ValueError(f"--store: unknown scheme '{parts.scheme}'; allowed: a folder, {', '.join(SCHEMES)}")
        with _errors_named(url):
            return cls(url, from_url(url, **_options(parts.scheme, os.environ)))

    @property
    def is_remote(self) -> bool:
        """Whether every request goes over a network and may cost money."""
        return urlsplit(self.url).scheme in ("s3", "gs", "az")

    @cached_property
    def brief(self) -> Store:
        """The same store for what is worth nothing when it comes late: its requests end within seconds."""
        if not self.is_remote:
            return self
        options = _options(urlsplit(self.url).scheme, os.environ)
        options["client_options"]["timeout"] = timedelta(seconds=BRIEF)
        options["retry_config"] |= {"max_retries": 1, "retry_timeout": timedelta(seconds=BRIEF)}
        return Store(self.url, from_url(self.url, **options))

    def put(self, path: str, data: bytes) -> None:
        """Writes or replaces an object."""
        with _errors_named(path):
            self._backend.put(self._inside(path), data)

    def put_all(self, objects: Mapping[str, bytes]) -> None:
        """Writes several objects, side by side where each takes a journey; when it raises, none is still on its way."""
        self._each(lambda path: self.put(path, objects[path]), objects)

    def create(self, path: str, data: bytes) -> bool:
        """Writes an object unless one is there; says whether this writer's bytes are the ones that stand.

        A success whose answer was lost is recognised: the object that is already there is then this very one. So
        `data` must name its writer. An object that is said to be there and cannot be read is one that is being written
        or removed at this moment, or whose news has not reached everybody.
        """
        for pause in CREATE_PAUSES:
            time.sleep(pause)
            try:
                with _errors_named(path, AlreadyExistsError):
                    self._backend.put(self._inside(path), data, mode="create")
                return True
            except AlreadyExistsError:
                there = self.get(path)
            if there is not None:
                return there == data
        raise StoreError(f"{path}: is said to be there, and cannot be read")

    def get(self, path: str) -> bytes | None:
        """The bytes of an object, or None if there is none."""
        try:
            with _errors_named(path, FileNotFoundError):
                found = self._backend.get(self._inside(path))
                if self.is_remote and found.meta["size"] > 2 * PART:
                    return self._in_parts(path, found.meta["size"], found.meta["e_tag"])
                return bytes(found.bytes())
        except FileNotFoundError:
            return None

    def exists(self, path: str) -> bool:
        """Whether there is an object at this path."""
        return self.look(path) is not None

    def look(self, path: str) -> Entry | None:
        """Size and time of an object, or None if there is none."""
        try:
            with _errors_named(path, FileNotFoundError):
                return _entry(self._backend.head(self._inside(path)))
        except FileNotFoundError:
            return None

    def clock(self) -> float:
        """The time by the store's clock, in seconds since the epoch: what ages of objects are counted from."""
        probe = f"probe/{uuid.uuid4().hex}"
        try:
            self.put(probe, b"what time is it?")
        except StoreError:
            if self._root is not None:  # a full disk; its clock is this machine's, or close to it
                return time.time()
            raise
        entry = self.look(probe)
        self.delete([probe])
        if entry is None:
            raise StoreError(f"{probe}: what was written is not there")
        return entry.modified

    def entries(self, prefix: str, after: str = "") -> Iterator[Entry]:
        """All objects below a folder; slow on remote stores, so never on a hot path.

        Args:
            prefix: the folder.
            after: only objects whose paths sort after this one, which costs no more than there are of them.
        """
        with _errors_named(prefix):
            for chunk in self._backend.list(self._below(prefix), offset=after or None):
                yield from map(_entry, chunk)

    def paths(self, prefix: str) -> Iterator[str]:
        """The paths of all objects below a folder."""
        return (entry.path for entry in self.entries(prefix))

    def folders(self, prefix: str) -> list[str]:
        """The names of the folders directly below one."""
        with _errors_named(prefix):
            found = self._backend.list_with_delimiter(self._below(prefix))["common_prefixes"]
        if self._root is not None:  # a disk keeps folders whose objects are gone
            found = [path for path in found if next(self.paths(path), None) is not None]
        return sorted(path.rsplit("/", 1)[-1] for path in found)

    def delete(self, paths: Iterable[str]) -> None:
        """Removes objects; one that is already gone is no error."""
        several = list(paths)
        if self.url.startswith("s3://") and len(several) > 1:  # a thousand in one request; others stop at a missing one
            with _errors_named(f"{several[0]} and {len(several) - 1} more"):
                self._backend.delete([self._inside(path) for path in several])
        else:
            self._each(self._delete, several)

    def move(self, source: str, target: str) -> None:
        """Copies an object to another path, then removes it from the first; a missing source is no error."""
        data = self.get(source)
        if data is not None:
            self.put(target, data)
            self.delete([source])

    def _delete(self, path: str) -> None:
        try:
            with _errors_named(path, FileNotFoundError):
                self._backend.delete(self._inside(path))
        except FileNotFoundError:
            pass

    def _each(self, act: Callable[[str], None], paths: Collection[str]) -> None:
        """Acts on every path, on a remote store on several at once, and raises the first error."""
        if not self.is_remote or len(paths) < 2:
            for path in paths:
                act(path)
            return
        with ThreadPoolExecutor(min(SIDE_BY_SIDE, len(paths))) as pool:
            for done in [pool.submit(act, path) for path in paths]:
                done.result()

    def _in_parts(self, path: str, size: int, tag: str | None) -> bytes:
        """The bytes of a large object; all of one version, or an error."""

        def part(first: int) -> bytes:
            options = {"range": (first, min(first + PART, size)), "if_match": tag}
            return bytes(self._backend.get(path, options=options).bytes())

        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            return b"".join(pool.map(part, range(0, size, PART)))

    def _below(self, folder: str) -> str:
        """Like `_inside`, for a folder or all of the store."""
        return self._inside(folder.rstrip("/")) if folder else folder

    def _inside(self, path: str) -> str:
        """The path, if neither it nor a link in a folder leads out of the store.

        Raises:
            ValueError: it does.
        """
        if "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
            raise ValueError("is no path in a store")
        if self._root is not None:
            real = os.path.realpath(f"{self._root}/{path}")
            if os.path.commonpath([self._root, real]) != self._root:
                raise ValueError("leads out of the store")
        return path


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


def _open_folder(folder: Path, make: bool) -> LocalStore:
    if not (make or os.path.lexists(folder)):
        raise StoreError(f"--store: there is no folder {folder}; a run makes it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"--store: cannot make the folder {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(f"--store: the folder {folder} is not writable")
    return LocalStore(str(folder))


def _entry(record: Mapping[str, Any]) -> Entry:
    return Entry(record["path"], record["size"], record["last_modified"].timestamp())


def _options(scheme: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Patience with a remote store: what is away for longer is for the engine, which tries the step again."""
    if scheme == "memory":
        return {}
    client: dict[str, Any] = {"connect_timeout": timedelta(seconds=5)}
    if any(environment.get(name, "").startswith("http://") for name in ENDPOINTS[scheme]):
        client["allow_http"] = True
    backoff = {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=2)}
    return {
        "client_options": client,
        "retry_config": {"max_retries": 5, "retry_timeout": timedelta(seconds=30), "backoff": backoff},
    }


def _first_line(error: BaseException) -> str:
    """The cause in one line: backends append a debug dump, and their operating-system reason sits inside it."""
    text = " ".join(str(error).split("\n\nDebug source")[0].split())
    text = re.sub(r"^Generic \w+ error: ", "", text) or type(error).__name__
    if text == "Account must be specified":
        text += ": set AZURE_STORAGE_ACCOUNT_NAME"
    if METADATA_SERVICE in text:
        text = "no credentials: not in the environment (AWS_*, AZURE_STORAGE_*, GOOGLE_*), nor of this machine"
    return without_secrets(text, os.environ)
