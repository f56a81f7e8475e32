"""Prepared arrays: each data set decoded once per node into files that its workers map into memory.

They lie in the folder named by `HEDGEROW_CACHE` (default `~/.cache/hedgerow/prepared`), one folder per fingerprint,
and may be deleted at any time. Where that folder cannot be used, the arrays are decoded into each process's memory.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LAYOUT = 1
"""Rises when the files in a prepared folder change their meaning."""

_ARRAYS = ("train-images", "train-labels", "test-images", "test-labels")
_log = logging.getLogger(__name__)
_intact: set[Path] = set()
_in_memory: dict[str, Prepared] = {}


@dataclass(frozen=True)
class Labelled:
    """Images with their labels."""

    images: NDArray[np.uint8]
    """(N, C, H, W)."""
    labels: NDArray[np.int64]
    """(N,)."""


@dataclass(frozen=True)
class Prepared:
    """A whole data set, before anything is held out or left out."""

    train: Labelled
    test: Labelled
    mean: tuple[float, ...]
    """Per channel, of training pixels in [0, 1]."""
    std: tuple[float, ...]


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 over a description in JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_prepared(fingerprint: str) -> bool:
    """Whether the arrays of this content are at hand, so that their source is not needed."""
    return _opened(cache_folder() / fingerprint) is not None


def prepare(fingerprint: str, read: Callable[[], tuple[Labelled, Labelled]]) -> Prepared:
    """The arrays of this content, memory-mapped; decoded first if no process of this node has done so.

    The maps are copy-on-write: they can be handed to PyTorch as they are, and nothing written to them reaches the file.

    Args:
        fingerprint: names the content; equal fingerprints must mean equal arrays.
        read: decodes the training and the test part. Called by one process at a time.
    """
    folder = cache_folder() / fingerprint
    if (found := _opened(folder)) is not None:
        return found
    if fingerprint in _in_memory:
        return _in_memory[fingerprint]
    decoded = None
    try:
        with _locked(folder):
            if (found := _opened(folder)) is not None:
                return found
            decoded = read()
            return _published(folder, decoded)
    except _UnusableError as problem:
        _log.warning("%s cannot be used (%s): every process decodes the data into its own memory", folder, problem)
        train, test = decoded or read()
        return _in_memory.setdefault(fingerprint, Prepared(train, test, *_statistics(train.images)))


def remembered(name: str, compute: Callable[[], str]) -> str:
    """The short text kept under this name, computed first if nobody has."""
    path = cache_folder() / "remembered" / name
    try:
        return path.read_text()
    except OSError:
        text = compute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(text)
        partial.replace(path)
    except OSError as problem:
        _log.warning("%s cannot be used (%s): digests are computed again by every process", path.parent, problem)
    return text


class _UnusableError(Exception):
    """The cache folder cannot be written: not an error of the data, so told apart from those of `read`."""


def cache_folder() -> Path:
    """Where prepared data sets lie on this machine."""
    return Path(os.environ.get("HEDGEROW_CACHE") or "~/.cache/hedgerow/prepared").expanduser()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds back other processes that would prepare the same folder; the lock ends with the process."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_suffix(".lock").open("w")
    except OSError as problem:
        raise _UnusableError(problem) from problem
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as problem:  # a shared file system without locks
            raise _UnusableError(problem) from problem
        yield


def _published(folder: Path, parts: tuple[Labelled, Labelled]) -> Prepared:
    """Writes the arrays beside `folder` and moves them there at once; call under the lock."""
    train, test = parts
    mean, std = _statistics(train.images)
    partial = folder.with_suffix(".partial")
    try:
        for abandoned in (partial, folder):  # left by a process that was killed, or damaged
            if abandoned.exists():
                shutil.rmtree(abandoned)
        partial.mkdir()
        files = {}
        arrays: tuple[NDArray[Any], ...] = (train.images, train.labels, test.images, test.labels)
        for name, array in zip(_ARRAYS, arrays, strict=True):
            path = partial / f"{name}.npy"
            np.save(path, array, allow_pickle=False)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        manifest = {"layout": LAYOUT, "files": files, "mean": mean, "std": std}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
        partial.replace(folder)
    except OSError as problem:
        shutil.rmtree(partial, ignore_errors=True)
        raise _UnusableError(problem) from problem
    if (found := _opened(folder)) is None:
        raise _UnusableError("what was written cannot be read back")
    return found


def _opened(folder: Path) -> Prepared | None:
    """The arrays in this folder, unless it is missing or damaged.

    Sizes are checked every time; digests once in a process, because a machine that lost power keeps files of the right
    size and the wrong content.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest["layout"] != LAYOUT or not _is_intact(folder, manifest["files"]):
            return None
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False) for name in _ARRAYS]
    except (OSError, ValueError, KeyError):
        return None
    mean, std = tuple(manifest["mean"]), tuple(manifest["std"])
    return Prepared(Labelled(arrays[0], arrays[1]), Labelled(arrays[2], arrays[3]), mean, std)


def _is_intact(folder: Path, files: Mapping[str, Any]) -> bool:
    if any((folder / name).stat().st_size != record["bytes"] for name, record in files.items()):
        _intact.discard(folder)
    elif folder in _intact or all(_sha256(folder / name) == record["sha256"] for name, record in files.items()):
        _intact.add(folder)
        return True
    _log.warning("%s is damaged; preparing it again", folder)
    return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, from exact counts, so that no summation order shows."""
    counts = np.zeros((images.shape[1], 256), dtype=np.int64)
    for first in range(0, len(images), 1024):  # `bincount` widens to 64 bits
        for channel, count in enumerate(counts):
            count += np.bincount(images[first : first + 1024, channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    means = [float(count @ values / count.sum()) for count in counts]
    stds = [float(count @ (values - mean) ** 2 / count.sum()) ** 0.5 for count, mean in zip(counts, means, strict=True)]
    return tuple(means), tuple(stds)
