"""How far a run is tracked, as a record in the store, and whose turn it is to go on from there."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from cluster.owner import Owner
from cluster.store import Store
from cluster.wandb_sink import TrackingFailed

SETTLE_SECONDS = 0.5
"""Between claiming the turn and relying on it: of two who claim at once, the later one has it."""
BEAT_SECONDS = 5.0
SILENCE_SECONDS = 30.0
"""Without a beat after which a holder on another machine, whose process cannot be seen from here, is passed over."""


class Cursor:
    """What W&B was given of a run in one mode. Only who has the turn may log: a W&B run has one counter of steps."""

    def __init__(self, store: Store, run_id: str, mode: str) -> None:
        self.read: dict[str, str] = {}
        """The last object of each driver's events that need not be read again."""
        self.logged: set[str] = set()
        """Steps whose rows W&B has."""
        self._next: dict[str, int] = {}
        """Number of the next row, by W&B run."""
        self._store = store
        self._path = f"runs/{run_id}/tracking-{mode}.json"
        self._me = {**Owner.me().to_json(), "turn": secrets.token_hex(4)}
        self._holder: dict[str, Any] | None = None
        self._beat = 0
        self._saved = 0.0
        self._seen: tuple[Any, ...] = ()
        self._seen_since = 0.0

    def load(self) -> None:
        """Reads the record."""
        record = self._load_holder()
        self.read, self.logged = record.get("read", {}), set(record.get("logged", []))
        self._next, self._beat = record.get("next", {}), record.get("beat", 0)

    def take(self) -> bool:
        """Asks for the turn; when it is free, a second call after `SETTLE_SECONDS` has it."""
        self.load()
        if self._holder == self._me:
            return time.monotonic() - self._saved > SETTLE_SECONDS
        if self._holder is None or Owner.from_json(self._holder).is_gone() or self._is_silent():
            self._holder = self._me
            self._put()
        return False

    def take_soon(self) -> None:
        """Takes the turn, waiting until it is sure.

        Raises:
            TrackingFailed: a process of this machine has it.
        """
        while not self.take():
            if self._holder is not None and self._holder != self._me and self._holder["host"] == self._me["host"]:
                raise TrackingFailed(f"process {self._holder['pid']} is tracking this run")
            time.sleep(SETTLE_SECONDS / 2)

    def release(self) -> None:
        """Gives the turn back, if this process has it."""
        self._load_holder()
        if self._holder == self._me:
            self._holder = None
            self._put()

    def reserve(self, chain_id: str, rows: int) -> int:
        """Sets numbers of rows aside before the rows are logged: whatever dies then, steps never go back.

        Returns:
            the first of the numbers.
        """
        first = self._next.get(chain_id, 0)
        self._next[chain_id] = first + rows
        self.save()
        return first

    def beat(self) -> None:
        """Shows now and then that the holder lives."""
        if time.monotonic() - self._saved > BEAT_SECONDS:
            self.save()

    def save(self) -> None:
        """Writes the record.

        Raises:
            TrackingFailed: another process took the turn, since this one was silent for too long.
        """
        self._load_holder()
        if self._holder != self._me:
            raise TrackingFailed("another tracker took over")
        self._put()

    def _put(self) -> None:
        self._beat += 1
        record = {
            "read": self.read,
            "logged": sorted(self.logged),
            "next": self._next,
            "holder": self._holder,
            "beat": self._beat,
        }
        self._store.put(self._path, json.dumps(record).encode())
        self._saved = time.monotonic()

    def _load_holder(self) -> dict[str, Any]:
        data = self._store.get(self._path)
        try:
            record: dict[str, Any] = json.loads(data or b"{}")
        except ValueError:  # torn by a crash of the machine: rows may come twice, and the events know them all
            record = {}
        self._holder = record.get("holder")
        return record

    def _is_silent(self) -> bool:
        """Judged by this process's clock alone."""
        beat = (self._holder, self._beat)
        if beat != self._seen:
            self._seen, self._seen_since = beat, time.monotonic()
        return time.monotonic() - self._seen_since > SILENCE_SECONDS
