"""Follows the events of a run and tells a sink what its steps reported."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cluster.flow import describe
from cluster.ledger import Damaged, Ledger
from cluster.runs import Run
from cluster.store import Store
from cluster.tracking_cursor import Cursor
from cluster.wandb_sink import Chain, Sink, Table, TrackingFailed

QUIET_SECONDS = 60.0
"""Without a step under way after which a chain's W&B run is closed; it is opened again if more comes."""
UNDER_WAY = ("asked", "waiting", "held-up", "started", "retried", "recomputed")
DONE = ("published", "found")
ROWS = ("level", "shard", "corruption", "delta", "weights", "rounded")
"""Coordinates that tell the rows of one W&B run apart; any other begins a W&B run of its own."""
WHOLE = ("trial",)
"""Coordinates that name a W&B run by themselves: where one of them is, all others tell its rows apart."""
SETTINGS = ("parameters",)
"""What steps at such a place report that is no result of the W&B run, but what it is: its config."""
BOOKS = ("steps",)
"""What they report for the books: nothing to look at."""
WORDS = ("state", "because", "cause", "message")
"""What they report in words that are worth a column."""
TABLES = ("front",)
"""Lists of records that become tables, in a W&B run about the whole: its job type is `STUDY`."""
STUDY = "study"


class Follower:
    """Turns the events of a run into rows of W&B runs: one W&B run per chain, one row per finished step and epoch."""

    def __init__(self, store: Store, run: Run, sink: Sink, cursor: Cursor) -> None:
        self.cursor = cursor
        self._store = store
        self._ledger = Ledger(store)
        self._run = run
        self._sink = sink
        self._read: dict[str, str] = {}
        self._fresh: list[tuple[Mapping[str, Any], str]] = []
        self._given: set[str] = set()
        self._unsure: dict[str, list[str]] = {}
        """Steps whose rows an open W&B run was given, by its id: it has them for sure when it is closed."""
        self._under_way: dict[str, set[str]] = {}
        self._failed: dict[str, set[str]] = {}
        self._last: dict[str, float] = {}

    def is_behind(self) -> bool:
        """Whether there are events that W&B was not brought up to."""
        self.cursor.load()
        return any(self._unread())

    def look(self) -> None:
        """Logs the steps that finished since the last look.

        Raises:
            StoreError: the store does not answer; the next look goes on where this one stopped.
            TrackingFailed: W&B does not take a row.
        """
        self._read_events()
        while self._fresh:
            at, key = self._fresh[0]
            if key not in self.cursor.logged and key not in self._given:
                self._log_step(at, key)
            del self._fresh[0]

    def close_quiet(self) -> None:
        """Closes the W&B runs of chains where nothing is under way any more."""
        for chain_id in self._sink.open:
            if not self._under_way.get(chain_id) and time.monotonic() - self._last[chain_id] > QUIET_SECONDS:
                self._close(chain_id)

    def finish(self) -> int:
        """Closes all W&B runs, and remembers what they took, so that it is not logged again.

        Returns:
            the steps logged.

        Raises:
            TrackingFailed: one of them could not be closed; the others are.
            StoreError: the store does not take the record of it.
        """
        failures = []
        for chain_id in self._sink.open:
            try:
                self._close(chain_id)
            except TrackingFailed as failure:
                failures.append(failure)
        if failures:
            raise failures[0]
        self.cursor.read |= self._read
        self.cursor.save()
        return len(self._given)

    def _read_events(self) -> None:
        for log, path in self._unread():
            for line in (self._store.get(path) or b"").splitlines():
                event = json.loads(line)
                if event["event"] == "step":
                    self._note(event)
            self._read[log] = path

    def _unread(self) -> Iterator[tuple[str, str]]:
        """The objects with events to read, after the driver's log that each belongs to.

        Drivers may run side by side, so there is a place to go on from for each.
        """
        for path in sorted(self._store.paths(f"runs/{self._run.id}/events")):
            log = path.rpartition("-")[0]
            if path > max(self._read.get(log, ""), self.cursor.read.get(log, "")):
                yield log, path

    def _note(self, event: Mapping[str, Any]) -> None:
        at, key, state = event.get("at", {}), event["key"], event["state"]
        chain_id = chain_id_of(self._run.id, at)
        under_way = self._under_way.setdefault(chain_id, set())
        failed = self._failed.setdefault(chain_id, set())
        if state in UNDER_WAY:
            under_way.add(key)
        else:
            under_way.discard(key)
        if state == "failed":
            failed.add(key)
        if state in DONE:
            failed.discard(key)
            self._fresh.append((at, key))

    def _log_step(self, at: Mapping[str, Any], key: str) -> None:
        try:
            published = self._ledger.find(key)
            if published is None:  # set aside since; it is told again when it is there again
                return
            curves = published.read("history.jsonl") if "history.jsonl" in published.manifest["files"] else b""
        except Damaged:
            return
        kind, metrics = published.manifest["task"]["kind"], dict(published.metrics)
        tables = {name: table_of(metrics.pop(name)) for name in TABLES if _are_records(metrics.get(name))}
        chain = chain_of(self._run, at, STUDY if tables else None)
        place = {name: value for name, value in at.items() if name not in _of_chain(at)}
        words = {}
        if any(name in at for name in WHOLE):
            settings = {name: metrics.pop(name) for name in SETTINGS if isinstance(metrics.get(name), Mapping)}
            if settings:
                self._sink.configure(chain, settings)
            metrics = {name: value for name, value in metrics.items() if name not in BOOKS}
            words = {f"{kind}/{name}": metrics[name] for name in WORDS if isinstance(metrics.get(name), str)}
        rows: list[dict[str, Any]] = [dict(scalars(json.loads(line), f"curves/{kind}")) for line in curves.splitlines()]
        rows.append({**dict(scalars(metrics, kind)), **words, "key": key[:12]})
        if "level" in place:
            self._sink.chart_by_level(chain, kind)
        step = self.cursor.reserve(chain.id, len(rows))
        for number, row in enumerate(rows):
            last = number == len(rows) - 1
            self._sink.log(chain, step + number, {**row, **place}, tables if last else {})
        self._unsure.setdefault(chain.id, []).append(key)
        self._given.add(key)
        self._last[chain.id] = time.monotonic()

    def _close(self, chain_id: str) -> None:
        self._sink.close(chain_id, 1 if self._under_way.get(chain_id) or self._failed.get(chain_id) else 0)
        self.cursor.logged.update(self._unsure.pop(chain_id))
        self.cursor.save()


def chain_id_of(run_id: str, at: Mapping[str, Any]) -> str:
    """The id of the W&B run for a place in a run: the same in every process and every resume."""
    place = json.dumps(_of_chain(at), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{run_id} {place}".encode()).hexdigest()[:16]


def _of_chain(at: Mapping[str, Any]) -> dict[str, Any]:
    whole = {name: at[name] for name in WHOLE if name in at}
    return whole or {name: value for name, value in at.items() if name not in ROWS}


def chain_of(run: Run, at: Mapping[str, Any], job_type: str | None = None) -> Chain:
    """The W&B run for a place in a run; one with a job type of its own is not that of the steps at this place."""
    name, recipe, place = run.record["name"], run.record.get("recipe", {}), _of_chain(at)
    return Chain(
        id=chain_id_of(run.id, {**place, "job": job_type} if job_type else place),
        name=describe(place) or name,
        project=name,
        group=run.id,
        job_type=job_type or recipe.get("kind", "chain"),
        config={**recipe, "at": place},
    )


def table_of(records: Iterable[Mapping[str, Any]]) -> Table:
    """Records as a table: nested values by their path, after those that are not nested; what one lacks is None."""
    flat = [dict(_cells(record)) for record in records]
    columns = sorted(dict.fromkeys(name for record in flat for name in record), key=lambda name: "/" in name)
    return Table(columns, [[record.get(name) for name in columns] for record in flat])


def _cells(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from _cells(item, f"{path}{name}/")
        else:
            yield f"{path}{name}", json.dumps(item) if isinstance(item, list) else item


def _are_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def scalars(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """The numbers in nested values, each under its path: `evaluate/robust/0.1/accuracy`.

    An item of a list is called by its `epsilon` or `name` if it has one, else by its place in the list.
    """
    if isinstance(value, bool | int | float):
        yield name, int(value) if isinstance(value, bool) else value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from scalars(item, f"{name}/{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            label = _label(item)
            rest = {key: part for key, part in item.items() if key != label} if label else item
            yield from scalars(rest, f"{name}/{item[label] if label else index}")


def _label(item: Any) -> str | None:
    if not isinstance(item, Mapping):
        return None
    return next((label for label in ("epsilon", "name") if label in item), None)
