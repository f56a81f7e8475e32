"""Runs: which recipe was asked for, which steps it named, and what happened, as records in the store."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.ledger import Damaged, Ledger, Published
from cluster.store import Entry, Store, StoreError

FLUSH_SECONDS = 1.0
BEAT_SECONDS = 5.0
"""Between two signs of life of a driver."""


@dataclass(frozen=True)
class Run:
    """One recipe on one store, under one name, however often it is started."""

    id: str
    record: Mapping[str, Any]
    """name, recipe, command, created."""

    @classmethod
    def open(cls, store: Store, run_id: str, record: Mapping[str, Any]) -> Run:
        """The run, recorded now if it is new; of a known one only the recipe is renewed: where and how long to run."""
        path = f"runs/{run_id}/run.json"
        fresh = {**record, "created": round(time.time(), 3)}
        if not store.create(path, json.dumps(fresh).encode()):
            known = json.loads(store.get(path) or b"{}")
            fresh = {**known, "recipe": record["recipe"]} if "recipe" in record else known
            if fresh != known:
                store.put(path, json.dumps(fresh).encode())
        return cls(run_id, fresh)

    @classmethod
    def load(cls, store: Store, run_id: str) -> Run:
        """A recorded run; the beginning of its id is enough.

        Raises:
            ValueError: no run, or several, start like this.
        """
        known = store.folders("runs")
        found = [run_id] if run_id in known else [name for name in known if name.startswith(run_id)]
        if len(found) != 1:
            names = ", ".join(found or known) or "none yet"
            raise ValueError(
                f"{'several runs start' if found else 'no run starts'} with '{run_id}'; runs here: {names}"
            )
        return cls(found[0], _record_of(store, found[0]))


def all_runs(store: Store) -> list[Run]:
    """Every run of a store, oldest first."""
    runs = [Run(run_id, _record_of(store, run_id)) for run_id in store.folders("runs")]
    return sorted(runs, key=lambda run: (run.record.get("created", 0), run.id))


class EventLog:
    """What one driver saw, appended to the run in small objects; the truth that tracking is fed from.

    A thread writes them: a slow store must not slow the event loop, and a driver that is killed loses a second. It
    also shows that the driver lives, in an object that it overwrites: while steps take long there are no events.
    """

    def __init__(self, store: Store, run_id: str, driver: str) -> None:
        self._store = store
        self._prefix = f"{_events(run_id)}/{time.time_ns():020d}-{driver}"
        self._beat = f"{_beats(run_id)}/{driver}"
        self._waiting: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._chunks = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="events", daemon=True)
        self._thread.start()

    def write(self, event: str, **news: Any) -> None:
        """Adds an event."""
        with self._lock:
            self._waiting.append({"time": round(time.time(), 3), "event": event, **news})

    def close(self) -> None:
        """Writes what is waiting.

        Raises:
            StoreError: the store does not take it.
        """
        self._over.set()
        self._thread.join()
        self._flush()

    def _write_on(self) -> None:
        due = time.monotonic() + BEAT_SECONDS
        while not self._over.wait(FLUSH_SECONDS):
            try:
                self._flush()
                if time.monotonic() >= due:
                    self._store.put(self._beat, b"")  # when it was written says all
                    due = time.monotonic() + BEAT_SECONDS
            except StoreError:  # kept for the next try
                continue

    def _flush(self) -> None:
        with self._lock:
            taken = list(self._waiting)
        if not taken:
            return
        lines = "".join(json.dumps(event) + "\n" for event in taken)
        self._store.put(f"{self._prefix}-{self._chunks:06d}.jsonl", lines.encode())
        self._chunks += 1
        with self._lock:
            del self._waiting[: len(taken)]


@dataclass(frozen=True)
class Chunk:
    """One object of a log: what a driver wrote at once."""

    driver: str
    written: float
    """In seconds since the epoch by the store's clock; the times of its events are by the driver's."""
    events: list[dict[str, Any]]


def log_of(store: Store, run_id: str) -> Iterator[Chunk]:
    """The log of a run, read from its beginning, in the order of each of its drivers."""
    for entry in sorted(store.entries(_events(run_id)), key=lambda entry: entry.path):
        yield read_chunk(store, entry)


def events_of(store: Store, run_id: str) -> Iterator[dict[str, Any]]:
    """The events of a run, in the order of each of its drivers."""
    return (event for chunk in log_of(store, run_id) for event in chunk.events)


def read_chunk(store: Store, entry: Entry) -> Chunk:
    """What an object of a log holds."""
    lines = (store.get(entry.path) or b"").splitlines()
    return Chunk(driver_of(entry), entry.modified, [json.loads(line) for line in lines])


def driver_of(entry: Entry) -> str:
    """The driver that wrote an object of a log, by the name that `EventLog` gave it: `TIME-DRIVER-NUMBER.jsonl`."""
    return entry.path.rpartition("/")[2].split("-")[1]


def next_path(entry: Entry) -> str:
    """The object that a driver's log goes on with after this one."""
    log, _, number = entry.path.removesuffix(".jsonl").rpartition("-")
    return f"{log}-{int(number) + 1:06d}.jsonl"


def later_entries(store: Store, run_id: str, last: Mapping[str, Entry], drivers: Collection[str]) -> list[Entry]:
    """The objects of a run's log that sort after all that are known, and all of drivers that nothing is known of.

    Args:
        store: with the run.
        run_id: the run.
        last: the newest object that is known, by driver.
        drivers: those that are seen at work: the log of one whose clock is late sorts before others.
    """
    newest = max((entry.path for entry in last.values()), default="")
    after = newest if all(driver in last for driver in drivers) else ""
    found = store.entries(_events(run_id), after)
    fresh = (entry for entry in found if (known := last.get(driver_of(entry))) is None or entry.path > known.path)
    return sorted(fresh, key=lambda entry: entry.path)


def beats_of(store: Store, run_id: str) -> dict[str, float]:
    """When each driver of a run beat last, by the store's clock; one that began within seconds has not yet."""
    return {entry.path.rpartition("/")[2]: entry.modified for entry in store.entries(_beats(run_id))}


@dataclass(frozen=True)
class Finished:
    """A finished step of a run and its place in it."""

    at: Mapping[str, Any]
    step: Published

    @property
    def kind(self) -> str:
        """The task's name."""
        return str(self.step.manifest["task"]["kind"])

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What the task reported."""
        return self.step.metrics


def write_plan(store: Store, run_id: str, steps: list[dict[str, Any]]) -> None:
    """Records the steps that a run names, so that `gc` keeps them and `explain` knows them before they start."""
    store.put(f"runs/{run_id}/plan.json", json.dumps(steps).encode())


def named_steps(
    store: Store, run_id: str, events: Iterable[Mapping[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """Every step that a run named, by key: its place, and its task and inputs where the plan knew them.

    Args:
        store: with the run.
        run_id: the run.
        events: those of the run, if they have been read already.
    """
    named = {step["key"]: step for step in json.loads(store.get(f"runs/{run_id}/plan.json") or b"[]")}
    if events is None:
        events = events_of(store, run_id)
    for event in events:
        if "key" in event:
            known = {name: event[name] for name in ("key", "kind", "at") if name in event}
            named.setdefault(event["key"], known)
    return named


def finished_steps(store: Store, run_id: str) -> list[Finished]:
    """The finished steps of a run, in the order in which it named them; a damaged one is not finished."""
    ledger = Ledger(store)
    finished = []
    for key, step in named_steps(store, run_id).items():
        with contextlib.suppress(Damaged):
            published = ledger.find(key)
            if published is not None:
                finished.append(Finished(step.get("at", {}), published))
    return finished


def _record_of(store: Store, run_id: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(store.get(f"runs/{run_id}/run.json") or b"{}")
    return record


def _events(run_id: str) -> str:
    return f"runs/{run_id}/events"


def _beats(run_id: str) -> str:
    return f"runs/{run_id}/beats"
