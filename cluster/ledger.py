"""Who computes which step, and what was published: a small ledger of objects on the store.

One object per fence number, written with put-if-absent, is a lease; only its holder overwrites it, as a heartbeat.
A manifest, written with put-if-absent after its files, is a publication. Nothing else decides anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cluster.cache import Cache
from cluster.owner import Owner
from cluster.store import Store, StoreError

PREFIX = re.compile(r"[0-9a-f]{4,64}")
"""A step's key, or enough of its beginning to look it up by."""


CHECKPOINT = "checkpoint"
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,127}")
"""The names that files of a result may have: no folders, nothing that a disk or a URL reads in its own way."""
MISSING = "missing"
LOOKS = (0.2, 0.8)
"""Seconds before each further look at a missing file, until it is taken for lost: what a shared folder or a gateway
says of fresh objects may be a moment old."""
SHA256 = re.compile(r"[0-9a-f]{64}")


class Fenced(RuntimeError):
    """A newer lease on the same step exists: this holder was given up and must not publish."""


class Damaged(RuntimeError):
    """A stored file is not what its manifest says."""

    def __init__(self, key: str, name: str, reason: str) -> None:
        super().__init__(f"step {key[:12]}: {name} is damaged: {reason}")
        self.key = key
        self.name = name
        self.reason = reason

    def __reduce__(self) -> Any:
        return (type(self), (self.key, self.name, self.reason))


@dataclass(frozen=True)
class Published:
    """A finished step: what it computed from what, its metrics, and where its files are."""

    key: str
    manifest: Mapping[str, Any]
    store: Store = field(repr=False, compare=False)

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The small values that the task reported."""
        metrics: Mapping[str, Any] = self.manifest["metrics"]
        return metrics

    def read(self, name: str) -> bytes:
        """The bytes of a file, checked against the manifest; from this machine's cache if the store is far away.

        Raises:
            KeyError: the step has no such file.
            Damaged: the file is missing or its bytes are not those that were published.
        """
        digest = self.manifest["files"][name]["sha256"]
        cache = Cache.here() if self.store.is_remote else None
        data = cache.read(digest) if cache is not None else None
        if data is None:
            data = self.stored(name)
            if cache is not None:
                cache.keep(digest, data)
        return data

    def stored(self, name: str) -> bytes:
        """Like `read`, from the store itself."""
        entry = self.manifest["files"][name]
        data = self.store.get(entry["path"])
        if data is None:
            raise Damaged(self.key, name, MISSING)
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise Damaged(self.key, name, "its bytes are not those that were published")
        return data

    def verify(self) -> None:
        """Reads every file from the store.

        Raises:
            Damaged: at the first file that is not as published.
        """
        for name in self.manifest["files"]:
            self.stored(name)


class Progress(NamedTuple):
    """How far a running step has come."""

    done: int = 0
    total: int = 0
    """0 before anything is known."""
    note: str = ""

    @property
    def part(self) -> float:
        """What is done, from 0 to 1."""
        return self.done / self.total if self.total else 0.0


@dataclass
class Lease:
    """The right to compute a step, for as long as its beats are seen and no newer fence exists."""

    key: str
    fence: int
    record: dict[str, Any]

    @property
    def owner(self) -> Owner | None:
        """The process that took it; None where its record was torn."""
        owner = self.record["owner"]
        return None if owner is None else Owner.from_json(owner)

    @property
    def progress(self) -> Progress:
        """How far its holder has come, by its last beat."""
        return Progress(*self.record.get("progress", ()))


class Ledger:
    """The verbs on the store: find, lease, beat, publish."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def find(self, key: str) -> Published | None:
        """The published step, or None.

        Raises:
            Damaged: there is a manifest, but it is torn or altered.
        """
        data = self.store.get(_manifest_path(key))
        if data is None:
            return None
        try:
            manifest = json.loads(data)
            digest = manifest.pop("digest")
            if digest != _digest(manifest) or manifest["key"] != key:
                raise Damaged(key, "manifest.json", "its digest does not match its content")
            astray = [name for name, entry in manifest["files"].items() if not _is_own(key, manifest, name, entry)]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Damaged(key, "manifest.json", "not a manifest") from None
        if astray:
            raise Damaged(key, "manifest.json", f"its entry '{astray[0]}' names no file of this step")
        return Published(key, manifest, self.store)

    def look_up(self, prefix: str) -> Published:
        """The published step whose key begins like this; a whole key is looked up without listing anything.

        Raises:
            ValueError: no published step or several begin so, its manifest is damaged, or this is no key.
        """
        if not PREFIX.fullmatch(prefix):
            allowed = "a key is 64 hexadecimal digits, the first 4 or more will do"
            raise ValueError(f"'{prefix}' is no step's key: {allowed}")
        listed = [prefix] if len(prefix) == 64 else self.store.folders(f"steps/{prefix[:2]}")
        try:
            found = [step for key in listed if key.startswith(prefix) and (step := self.find(key)) is not None]
        except Damaged as damaged:
            raise ValueError(f"{damaged}; resume the run that made this step") from None
        if len(found) > 1:
            several = ", ".join(f"{step.key[:12]} ({step.manifest['task']['kind']})" for step in found[:5])
            more = ", ..." if len(found) > 5 else ""
            raise ValueError(f"{len(found)} finished steps begin with '{prefix}': {several}{more}; give more digits")
        if not found:
            raise ValueError(f"no finished step begins with '{prefix}'; `hedgerow show RUN --json` lists a run's keys")
        return found[0]

    def current_lease(self, key: str, since: int = 1) -> Lease | None:
        """The newest lease on a step, live or not.

        Walks the fence numbers upward instead of listing: nearly every step has one.

        Args:
            key: the step.
            since: a fence that is known to have been there, to walk from.
        """
        newest: Lease | None = None
        fence = since
        while (lease := self.lease_at(key, fence)) is not None:
            newest = lease
            fence += 1
        return newest

    def lease_at(self, key: str, fence: int) -> Lease | None:
        """The lease with this fence number, or None if there never was one."""
        data = self.store.get(_lease_path(key, fence))
        if data is None:
            return None
        try:
            return Lease(key, fence, json.loads(data))
        except ValueError:  # torn by a crash of the machine: nobody holds it any more
            return Lease(key, fence, {"state": "released", "owner": None, "beat": 0, "attempt": ""})

    def lease(self, key: str, attempt: str, over: int = 0, about: Mapping[str, Any] | None = None) -> Lease | None:
        """Takes the lease on a step, or None while another holder lives.

        Args:
            key: the step.
            attempt: a name that no other attempt has.
            over: a fence whose holder the caller has seen dead or silent for too long, and may pass over.
            about: what is recorded of the step for people.
        """
        record = {"state": "held", "attempt": attempt, "owner": Owner.me().to_json(), "beat": 0, **(about or {})}
        if over == 0 and self.store.create(_lease_path(key, 1), _json(record)):  # nearly every step is nobody's yet
            return Lease(key, 1, record)
        newest = self.current_lease(key)
        fence = 1
        if newest is not None:
            if newest.fence > over and not is_free(newest):
                return None
            fence = newest.fence + 1
        if not self.store.create(_lease_path(key, fence), _json(record)):
            return None
        return Lease(key, fence, record)

    def beat(self, lease: Lease, **news: Any) -> None:
        """Shows that the holder lives, with news such as its progress."""
        lease.record.update(news, beat=lease.record["beat"] + 1)
        self.store.put(_lease_path(lease.key, lease.fence), _json(lease.record))

    def beaten(self, lease: Lease) -> float | None:
        """When its holder wrote last, in seconds since the epoch by the store's clock; None if it never did."""
        beat = self.store.look(_lease_path(lease.key, lease.fence))
        return beat.modified if beat is not None else None

    def is_fenced(self, lease: Lease) -> bool:
        """Whether a newer holder exists."""
        return self.store.exists(_lease_path(lease.key, lease.fence + 1))

    def publish(self, lease: Lease, files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> Published:
        """Makes a result the result of its step: files first, the manifest last.

        Raises:
            Fenced: a newer holder exists, or another's publication stands.
            ValueError: a file's name leads elsewhere, or is that of the checkpoints, which go when the step is done.
            StoreError: the store does not take a file; those that it took are removed, for a disk may be full of them.
        """
        for name in files:
            if not FILE_NAME.fullmatch(name):
                raise ValueError(
                    f"a file cannot be called {name!r}: letters, digits and _ . + = - are allowed, no folders"
                )
        if CHECKPOINT in files:
            raise ValueError(
                f"a file called '{CHECKPOINT}' would go with the step's own checkpoints: name it otherwise"
            )
        entries = {
            name: {
                "path": _file_path(lease.key, lease.fence, name),
                "sha256": hashlib.sha256(data).hexdigest(),
                "size": len(data),
            }
            for name, data in sorted(files.items())
        }
        paths = [str(entry["path"]) for entry in entries.values()]
        try:
            self.store.put_all({path: files[name] for path, name in zip(paths, entries, strict=True)})
        except StoreError:
            with contextlib.suppress(StoreError):
                self.store.delete(paths)
            raise
        whole = {
            **manifest,
            "key": lease.key,
            "files": entries,
            "fence": lease.fence,
            "attempt": lease.record["attempt"],
        }
        whole = json.loads(_json({**whole, "published": round(time.time(), 3)}))
        if self.is_fenced(lease):
            raise Fenced(f"step {lease.key[:12]}: attempt {lease.record['attempt']} was given up; not published")
        if not self.store.create(_manifest_path(lease.key), _json({**whole, "digest": _digest(whole)})):
            raise Fenced(f"step {lease.key[:12]}: already published by another attempt")
        return Published(lease.key, whole, self.store)

    def save_checkpoint(self, lease: Lease, state: bytes) -> None:
        """Keeps the state of a running step for a later attempt.

        Raises:
            Fenced: a newer holder exists.
        """
        if self.is_fenced(lease):
            raise Fenced(f"step {lease.key[:12]}: attempt {lease.record['attempt']} was given up")
        self.store.put(_checkpoint_path(lease.key, lease.fence), hashlib.sha256(state).digest() + state)

    def load_checkpoint(self, lease: Lease) -> bytes | None:
        """The newest whole checkpoint that an earlier attempt left."""
        for fence in range(lease.fence - 1, 0, -1):
            data = self.store.get(_checkpoint_path(lease.key, fence))
            if data is not None and hashlib.sha256(data[32:]).digest() == data[:32]:
                return data[32:]
        return None

    def drop_checkpoints(self, lease: Lease) -> None:
        """Removes what only an unfinished step needs."""
        self.store.delete(_checkpoint_path(lease.key, fence) for fence in range(1, lease.fence + 1))

    def set_aside(self, damaged: Damaged) -> str | None:
        """Moves a damaged publication out of the way, for a look later; the step can then be computed anew.

        Returns:
            the folder that now holds the manifest and the damaged file; None if another has done so already.
        """
        manifest = self.store.get(_manifest_path(damaged.key))
        published, found = self._look_again(damaged)
        for pause in LOOKS:
            if found is not None and found.reason == MISSING:
                time.sleep(pause)
                published, found = self._look_again(damaged)
        if found is None:
            return None
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        aside = f"set-aside/{found.key}/{stamp}"
        if published is not None:
            self.store.move(published.manifest["files"][found.name]["path"], f"{aside}/{found.name}")
        if self.store.get(_manifest_path(found.key)) != manifest:  # meanwhile another set it aside and published anew
            return None
        self.store.move(_manifest_path(found.key), f"{aside}/manifest.json")
        return aside

    def _look_again(self, damaged: Damaged) -> tuple[Published | None, Damaged | None]:
        """The publication and what is damaged of it now, whatever the cache holds."""
        published = None
        try:
            published = self.find(damaged.key)
            if published is not None and damaged.name in published.manifest["files"]:
                published.stored(damaged.name)
        except Damaged as found:
            return published, found
        return published, None


def is_free(lease: Lease) -> bool:
    """Whether a lease can be taken over at once: given back, or its process is known to be gone."""
    if lease.record["state"] != "held":
        return True
    return Owner.from_json(lease.record["owner"]).is_gone()


def folder_of(key: str) -> str:
    """Where everything about a step lies."""
    return f"steps/{key[:2]}/{key}"


def _manifest_path(key: str) -> str:
    return f"{folder_of(key)}/manifest.json"


def _lease_path(key: str, fence: int) -> str:
    return f"{folder_of(key)}/lease-{fence:04d}.json"


def _file_path(key: str, fence: int, name: str) -> str:
    return f"{folder_of(key)}/{fence:04d}/{name}"


def _is_own(key: str, manifest: Mapping[str, Any], name: str, entry: Mapping[str, Any]) -> bool:
    """Whether a manifest's entry is what `publish` writes: a digest of its own does not vouch for where it points."""
    named = FILE_NAME.fullmatch(name) and entry["path"] == _file_path(key, manifest["fence"], name)
    return bool(named and SHA256.fullmatch(entry["sha256"]))


def _checkpoint_path(key: str, fence: int) -> str:
    return f"{folder_of(key)}/{fence:04d}/{CHECKPOINT}"


def _json(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(_json(record)).hexdigest()
