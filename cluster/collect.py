"""Garbage: what no run names any more, and what unfinished attempts left behind.

Other drivers may be at work on the store meanwhile. What a run names stays; what is younger than the grace stays, for
it may belong to a run that is just being recorded; a step with a live lease stays; and a step is removed only under its
own lease, so that nobody computes it at that moment. Whoever had already found a step that goes computes it again.
"""

from __future__ import annotations

import json
import re
import secrets
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.ledger import Damaged, Lease, Ledger, folder_of
from cluster.runs import Run, log_of, named_steps
from cluster.standing import LINGER, MAY_LIVE, drivers_of, holder
from cluster.store import Entry, Store

WEEK = 7 * 24 * 3600.0
STEP = re.compile(r"steps/[0-9a-f]{2}/(?P<key>[0-9a-f]{64})/(?P<name>.+)")
ATTEMPT_FILE = re.compile(r"\d{4,}/.+")
LEASE_FILE = re.compile(r"lease-(?P<fence>\d{4,})\.json")


@dataclass
class Garbage:
    """One kind of garbage."""

    what: str
    things: int = 0
    entries: list[Entry] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Their size together."""
        return sum(entry.size for entry in self.entries)

    def add(self, entries: Sequence[Entry]) -> None:
        """One more of this kind, in these objects."""
        if entries:
            self.things += 1
            self.entries += entries


@dataclass
class Collected:
    """What was removed, or would be."""

    removed: bool
    kinds: list[Garbage]
    named: int
    """Steps that runs name, with what feeds them: they stay."""
    runs: int
    spared: int
    """Steps that no run names and that stay: at work, or younger than the grace."""

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "removed": self.removed,
            "garbage": [
                {"what": kind.what, "count": kind.things, "objects": len(kind.entries), "bytes": kind.bytes}
                for kind in self.kinds
            ],
            "bytes": sum(kind.bytes for kind in self.kinds),
            "kept": {"runs": self.runs, "named steps": self.named, "spared steps": self.spared},
        }

    def summary(self) -> str:
        """For people, a line a kind."""
        found = [kind for kind in self.kinds if kind.things]
        lines = [f"{kind.what}: {kind.things} ({len(kind.entries)} objects, {_readable(kind.bytes)})" for kind in found]
        total = _readable(sum(kind.bytes for kind in found))
        if not found:
            lines.append("nothing to remove")
        elif self.removed:
            lines.append(f"removed {total}")
        else:
            lines.append(f"this would free {total}; nothing was removed: add --yes to remove")
        spared = f"; {self.spared} that no run names, but at work or too young to judge" if self.spared else ""
        lines.append(f"kept: {self.named} steps, named by {self.runs} run{'' if self.runs == 1 else 's'}{spared}")
        return "\n".join(lines)


def collect(store: Store, forget: Sequence[str] = (), remove: bool = False, grace: float = LINGER) -> Collected:
    """Finds garbage and, if asked to, removes it.

    Leases stay with their steps: they are small, and tell `explain` of the attempts.

    Args:
        store: to clean.
        forget: runs, or beginnings of their ids, that are dropped first.
        remove: whether to remove; otherwise nothing changes.
        grace: seconds for which nothing that no run names is judged, and after which a silent driver or holder of a
            lease is dead.

    Raises:
        ValueError: there is no such run to forget, or it may be at work.
    """
    return _Collector(store, forget, remove, grace).collect()


class _Collector:
    def __init__(self, store: Store, forget: Sequence[str], remove: bool, grace: float) -> None:
        self._store = store
        self._ledger = Ledger(store)
        self._forgotten = {Run.load(store, run_id).id for run_id in forget}
        self._remove = remove
        self._grace = grace
        self._now = store.clock()
        self._steps: dict[str, list[Entry]] = {}
        self._let_go: set[str] = set()

    def collect(self) -> Collected:
        for run_id in sorted(self._forgotten):
            self._require_idle(run_id)
        for entry in self._store.entries("steps"):
            if match := STEP.fullmatch(entry.path):
                self._steps.setdefault(match["key"], []).append(entry)
        named = self._named(set(self._store.folders("runs")) - self._forgotten)
        self._let_go = self._named(self._forgotten)
        forgotten = self._forget()
        leftovers = [*self._leftovers(named), *self._strays()]
        if self._remove:  # before the steps: a full disk has no room for the leases under which these are removed
            for kind in leftovers:
                self._store.delete(entry.path for entry in kind.entries)
        unnamed = [key for key in self._steps if key not in named and self._is_idle(key)]
        if self._remove:  # a run may have been recorded meanwhile
            again = self._named(set(self._store.folders("runs")) - self._forgotten)
            unnamed = [key for key in unnamed if key not in again and self._remove_step(key)]
        steps = Garbage("steps that no run names")
        for key in unnamed:
            steps.add(self._steps[key])
        spared = len(self._steps.keys() - named - set(unnamed))
        kept_runs = set(self._store.folders("runs")) - self._forgotten
        kinds = [forgotten, steps, *leftovers]
        return Collected(self._remove, kinds, len(self._steps.keys() & named), len(kept_runs), spared)

    def _named(self, runs: set[str]) -> set[str]:
        """What these runs name, and whatever feeds it."""
        waiting: list[str] = []
        known: dict[str, Mapping[str, Any]] = {}
        for run_id in runs:
            for key, step in named_steps(self._store, run_id).items():
                waiting.append(key)
                known[key] = step
        reached: set[str] = set()
        while waiting:
            key = waiting.pop()
            if key not in reached:
                reached.add(key)
                waiting += self._inputs(key, known.get(key, {}))
        return reached

    def _inputs(self, key: str, step: Mapping[str, Any]) -> Collection[str]:
        if "inputs" not in step and key in self._steps:
            data = self._store.get(f"{folder_of(key)}/manifest.json")
            try:
                step = json.loads(data or b"{}")
            except ValueError:  # damaged: whoever needs it sets it aside
                step = {}
        inputs: Mapping[str, str] = step.get("inputs", {})
        return inputs.values()

    def _require_idle(self, run_id: str) -> None:
        log = list(log_of(self._store, run_id))
        for driver in drivers_of(self._store, run_id, log):
            if driver.state(self._now, self._grace) not in ("gone", "ended"):
                where = f" on {driver.owner.machine}" if driver.owner else ""
                wrote = f"its driver{where} wrote {driver.silent(self._now):.0f} s ago"
                raise ValueError(f"run {run_id} is at work: {wrote}; stop it first")
        for key in named_steps(self._store, run_id, (event for chunk in log for event in chunk.events)):
            if self._is_at_work(self._ledger.current_lease(key)):
                raise ValueError(f"run {run_id} is at work on step {key[:12]}; stop it first")

    def _forget(self) -> Garbage:
        kind = Garbage("forgotten runs")
        for run_id in sorted(self._forgotten):
            entries = list(self._store.entries(f"runs/{run_id}"))
            entries.sort(key=lambda entry: entry.path.endswith("/run.json"))  # last: half a run can be forgotten again
            kind.add(entries)
        if self._remove:
            self._store.delete(entry.path for entry in kind.entries)
        return kind

    def _is_idle(self, key: str) -> bool:
        """Whether nobody works on a step, and it is not so young that a run may be about to name it."""
        if key not in self._let_go and any(self._now - entry.modified < self._grace for entry in self._steps[key]):
            return False
        return not self._is_at_work(self._ledger.current_lease(key))

    def _is_at_work(self, lease: Lease | None) -> bool:
        return lease is not None and holder(self._ledger, lease, self._now, self._grace)[0] in MAY_LIVE

    def _remove_step(self, key: str) -> bool:
        """Removes a step under its own lease, so that no worker is computing it; says whether that could be had."""
        newest = self._ledger.current_lease(key)
        if self._is_at_work(newest):
            return False
        lease = self._ledger.lease(key, f"collect-{secrets.token_hex(6)}", over=newest.fence if newest else 0)
        if lease is None:
            return False
        known = {entry.path for entry in self._steps[key]}
        mine = f"{folder_of(key)}/lease-{lease.fence:04d}.json"
        here = {path for path in self._store.paths(folder_of(key)) if path != mine}
        if here - known:  # someone published or saved between the first look and the lease
            self._ledger.beat(lease, state="released")
            return False
        self._store.delete(sorted([*here, mine], key=_order_of_removal))
        return True

    def _leftovers(self, named: set[str]) -> Iterator[Garbage]:
        """What the attempts at steps that stay left behind."""
        kinds = {
            "file": Garbage("steps with files of attempts that did not publish"),
            "checkpoint": Garbage("published steps with checkpoints"),
            "log": Garbage("published steps with logs of failed attempts"),
        }
        for key in self._steps.keys() & named:
            left = self._left(key)
            if any(left.values()) and not self._is_at_work(self._ledger.current_lease(key)):
                for sort, entries in left.items():
                    kinds[sort].add(entries)
        yield from kinds.values()

    def _left(self, key: str) -> dict[str, list[Entry]]:
        """The objects of a step that neither its publication nor its next attempt needs."""
        try:
            published = self._ledger.find(key)
        except Damaged:  # kept as it is for whoever sets it aside
            return {}
        used = {file["path"] for file in published.manifest["files"].values()} if published else set()
        left = defaultdict(list)
        for entry in self._steps[key]:
            sort = _sort_of(entry)
            if sort == "file" and entry.path not in used:
                left[sort].append(entry)
            if sort in ("checkpoint", "log") and published is not None:
                left[sort].append(entry)
        return left

    def _strays(self) -> Iterator[Garbage]:
        """What belongs to no step."""
        for folder, what, age in (
            ("set-aside", "damaged files set aside more than a week ago", WEEK),
            ("drivers", "stop signs of drivers that are gone", self._grace),
            ("probe", "traces of tries whether the store can be written", self._grace),
        ):
            kind = Garbage(what)
            for entry in self._store.entries(folder):
                if self._now - entry.modified >= age:
                    kind.add([entry])
            yield kind


def _sort_of(entry: Entry) -> str:
    match = STEP.fullmatch(entry.path)
    assert match is not None  # only such entries are kept by key
    name = match["name"]
    if ATTEMPT_FILE.fullmatch(name):
        return "checkpoint" if name.endswith("/checkpoint") else "file"
    return "log" if name.startswith("failure-") else "record"


def _order_of_removal(path: str) -> tuple[int, str]:
    """The manifest first, so that none is ever there without its files; the leases last, the oldest first.

    A worker that comes in between takes the fence that is free first, sees a higher one and waits for its turn.
    """
    name = path.rsplit("/", 1)[-1]
    return (0 if name == "manifest.json" else 2 if LEASE_FILE.fullmatch(name) else 1, path)


def _readable(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
