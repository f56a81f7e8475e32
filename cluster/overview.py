"""How runs stand right now, by their events and the leases of their steps: no Ray, and a look reads what is new."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cluster.ledger import Lease, Ledger
from cluster.runs import beats_of, driver_of, later_entries, next_path, read_chunk
from cluster.standing import (
    LINGER,
    MAY_LIVE,
    DriverNow,
    NodeNow,
    Running,
    RunNow,
    StepNow,
    Trouble,
    holder,
    main_driver,
)
from cluster.store import Entry, Store

WINDOW = 300.0
"""The seconds that throughput is counted over."""
PAST = 24 * 3600.0
"""Seconds without news after which a run that was not shown is not looked into again."""
SEARCH_SECONDS, IDLE_SECONDS = 30.0, 5.0
"""Between two searches for runs that are at work: while one is shown, and while none is."""
SIDE_BY_SIDE = 16
"""Reads at once: a remote store takes its time for each."""
UNDER_WAY = ("started", "retried", "unplaced")


class Overview:
    """The runs of a store that are at work, or one run; each look costs what is new, however much there is."""

    def __init__(self, store: Store, run_id: str = "") -> None:
        """Prepares to look.

        Args:
            store: with the runs.
            run_id: the one to look at, however it stands; every one that is at work, or was at an earlier look, when
                empty. One that begins meanwhile is found within seconds, half a minute where others are at work; one
                that is resumed too, unless nothing was heard of it for a day.
        """
        self._store = store
        self._run_id = run_id
        self._ahead = store.clock() - time.time()
        self._search_due = 0.0
        self._past: set[str] = set()
        self._ended: dict[str, dict[str, Entry]] = {}
        """The newest object of each log, of runs that were looked into and not shown."""
        self._pool = ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="overview")
        self._lasting: dict[str, float] = {}
        """Seconds after one of its objects for which a log may go on, by the object's path."""
        self._readers = {run_id: _Reader(store, run_id, self._pool)} if run_id else {}

    def look(self) -> list[RunNow]:
        """How the runs stand, the newest last.

        Raises:
            StoreError: the store does not answer; the next look goes on where this one stopped.
        """
        now = time.time() + self._ahead
        if not self._run_id and time.monotonic() >= self._search_due:
            self._search(now)
            self._search_due = time.monotonic() + (SEARCH_SECONDS if self._readers else IDLE_SECONDS)
        seen = [reader.look(now) for reader in self._readers.values()]
        return sorted(seen, key=lambda run: run.driver.news if run.driver else 0.0)

    def _search(self, now: float) -> None:
        """Finds the runs that are at work and not shown yet."""
        others = [run_id for run_id in self._store.folders("runs") if run_id not in {*self._readers, *self._past}]
        for run_id, (planned, beats) in zip(others, self._pool.map(self._signs, others), strict=True):
            silent = now - max([planned, *beats.values()])
            if silent > PAST:
                self._past.add(run_id)
            elif silent < LINGER and self._goes_on(run_id, beats, now):
                self._readers[run_id] = _Reader(self._store, run_id, self._pool)

    def _signs(self, run_id: str) -> tuple[float, dict[str, float]]:
        """When a run was planned, for one that began just now has no more to show, and when its drivers beat last."""
        plan = self._store.look(f"runs/{run_id}/plan.json")
        return plan.modified if plan else 0.0, beats_of(self._store, run_id)

    def _goes_on(self, run_id: str, beats: Mapping[str, float], now: float) -> bool:
        """Whether a driver of a run wrote not long ago, and no end."""
        last = self._ended.setdefault(run_id, {})
        for entry in later_entries(self._store, run_id, last, beats):
            last[driver_of(entry)] = entry
        for driver, entry in last.items():
            silent = now - max(entry.modified, beats.get(driver, 0.0))
            if silent < LINGER and silent < self._lasts(entry):
                return True
        return False

    def _lasts(self, entry: Entry) -> float:
        """Seconds after one of its objects for which a log may go on: none once its driver has ended and waits not."""
        if entry.path not in self._lasting:
            events = read_chunk(self._store, entry).events
            last = events[-1] if events else {}
            ended = last.get("event") == "run" and last["state"] == "ended"
            self._lasting[entry.path] = last.get("waits", 0.0) if ended else LINGER
        return self._lasting[entry.path]


class _Reader:
    """One run: what was read of it so far, and how it stands by that."""

    def __init__(self, store: Store, run_id: str, pool: ThreadPoolExecutor) -> None:
        self._store, self._ledger, self._pool = store, Ledger(store), pool
        self._id = run_id
        self._read: dict[str, Entry] = {}
        """The newest object that was read, by driver."""
        self._plan: float = 0.0
        self._drivers: dict[str, DriverNow] = {}
        self._steps: dict[str, StepNow] = {}
        self._troubles: dict[str, Trouble] = {}
        self._published: deque[tuple[float, float]] = deque()
        """When, and how many sample-steps, of the publications in the window."""
        self._began = 0.0
        """When the newest driver did, by the store's clock."""
        self._took: dict[str, tuple[float, int]] = {}
        self._nodes: dict[str, tuple[str, float]] = {}

    def look(self, now: float) -> RunNow:
        """Reads what is new among the run's objects, and the leases of what is under way."""
        plan = self._store.look(f"runs/{self._id}/plan.json")
        if plan is not None and plan.modified != self._plan:
            self._read_plan(plan)
        beats = beats_of(self._store, self._id)
        fresh = later_entries(self._store, self._id, self._read, beats)
        known = {entry.path for entry in fresh}
        for following in self._pool.map(self._following, list(self._read.values())):
            fresh += [entry for entry in following if entry.path not in known]
        for name, beat in (*beats.items(), *((driver_of(entry), entry.modified) for entry in fresh)):
            self._driver(name).news = max(self._driver(name).news, beat)
        self._read_events(fresh)
        return self._standing(now)

    def _following(self, last: Entry) -> list[Entry]:
        """What a driver wrote after an object, if it has not ended: beside one that began later, a listing lacks it."""
        found: list[Entry] = []
        if self._drivers[driver_of(last)].ended or last.path == max(entry.path for entry in self._read.values()):
            return found
        while (entry := self._store.look(next_path((found or [last])[-1]))) is not None:
            found.append(entry)
        return found

    def _driver(self, name: str) -> DriverNow:
        return self._drivers.setdefault(name, DriverNow(name))

    def _read_plan(self, entry: Entry) -> None:
        for step in json.loads(self._store.get(entry.path) or b"[]"):
            known = self._steps.setdefault(step["key"], StepNow(step["key"], "", {}))
            known.kind, known.at = step["task"]["kind"], step["at"]
            known.inputs = tuple(step["inputs"].values())
            known.threads = step["task"].get("threads", 1) * step["task"].get("world_size", 1)
        self._plan = entry.modified

    def _read_events(self, fresh: Sequence[Entry]) -> None:
        """Takes events in by the store's clock: those of several drivers have several."""
        chunks = list(self._pool.map(lambda entry: read_chunk(self._store, entry), fresh))
        self._read.update((driver_of(entry), entry) for entry in fresh)
        events = [
            (chunk.written + event["time"] - chunk.events[-1]["time"], chunk.driver, event)
            for chunk in chunks
            for event in chunk.events
        ]
        for when, driver, event in sorted(events, key=lambda event: event[0]):
            if event["event"] == "step":
                self._hear_of_step(when, driver, event)
            elif event["event"] == "run":
                self._driver(driver).hear(event)
                if event["state"] == "started":
                    self._began = max(self._began, when)

    def _hear_of_step(self, when: float, driver: str, event: Mapping[str, Any]) -> None:
        step = self._steps.setdefault(event["key"], StepNow(event["key"], event["kind"], event["at"]))
        if event["state"] == "held-up":  # the store did not answer: where the step stands is what was said before
            return
        step.state, step.driver = event["state"], driver
        step.cause, step.message = event.get("cause", ""), event.get("message", "")
        if step.state == "published":
            self._published.append((when, event.get("sample_steps", 0)))
            if "seconds" in event:
                seconds, count = self._took.get(step.kind, (0.0, 0))
                self._took[step.kind] = seconds + event["seconds"], count + 1
        elif step.state in ("retried", "failed"):
            trouble = self._troubles.setdefault(step.cause, Trouble())
            trouble.message = step.message
            trouble.retried += step.state == "retried"

    def _standing(self, now: float) -> RunNow:
        states = {name: driver.state(now) for name, driver in self._drivers.items()}
        under_way = [
            step
            for step in self._steps.values()
            if step.state == "waiting" or (step.state in UNDER_WAY and states[step.driver] in MAY_LIVE)
        ]
        running = [step for step in self._pool.map(lambda step: self._running(step, now), under_way) if step]
        begun = {step.key for step in running}
        stored = [step.state for step in self._steps.values() if step.state in ("found", "published")]
        for trouble in self._troubles.values():
            trouble.failed = 0
        for step in self._steps.values():
            if step.state == "failed":
                self._troubles[step.cause].failed += 1
        per_minute, sample_steps = self._throughput(now)
        driver = main_driver(self._drivers.values(), now)
        return RunNow(
            id=self._id,
            driver=driver,
            driver_state=states[driver.id] if driver else None,
            driver_silent=driver.silent(now) if driver else 0.0,
            steps=self._steps,
            running=sorted(running, key=lambda step: (step.host, step.node, step.kind, step.key)),
            nodes=self._nodes_now(running, now),
            done=len(stored),
            found=stored.count("found"),
            failed=sum(step.state == "failed" for step in self._steps.values()),
            queued=max(0, sum(step.state != "waiting" for step in under_way) - len(running)),
            unplaced=Counter(step.message for step in under_way if step.state == "unplaced" and step.key not in begun),
            troubles=dict(sorted(self._troubles.items())),
            per_minute=per_minute,
            sample_steps=sample_steps,
            typical={kind: seconds / count for kind, (seconds, count) in self._took.items()},
        )

    def _running(self, step: StepNow, now: float) -> Running | None:
        """The holder of a step's lease, if there is one; a read or two."""
        lease = self._ledger.current_lease(step.key, step.fence)
        if lease is None:
            return None
        step.fence = lease.fence
        state, silent = holder(self._ledger, lease, now)
        return _seen(step, lease, silent) if state in MAY_LIVE else None

    def _throughput(self, now: float) -> tuple[float, float]:
        """Steps a minute and sample-steps a second over the window, or since the driver began in it."""
        while self._published and self._published[0][0] < now - WINDOW:
            self._published.popleft()
        if not self._published:
            return 0.0, 0.0
        since = max(now - WINDOW, min(self._published[0][0], self._began))
        seconds = max(now - since, 1.0)
        return 60 * len(self._published) / seconds, sum(steps for _, steps in self._published) / seconds

    def _nodes_now(self, running: Iterable[Running], now: float) -> list[NodeNow]:
        counts: dict[str, int] = defaultdict(int)
        for step in running:
            for name in (step.node or step.host, *step.beside):
                counts[name] += 1
                host, last = self._nodes.get(name, ("", 0.0))
                self._nodes[name] = host if name in step.beside else step.host, max(last, now - step.silent)
        self._nodes = {name: seen for name, seen in self._nodes.items() if now - seen[1] < WINDOW or name in counts}
        return [
            NodeNow(name if name != host else "", host, counts[name], round(max(0.0, now - last), 1))
            for name, (host, last) in sorted(self._nodes.items(), key=lambda node: (node[1][0], node[0]))
        ]


def _seen(step: StepNow, lease: Lease, silent: float) -> Running:
    record = lease.record
    return Running(
        key=step.key,
        kind=step.kind,
        at=step.at,
        attempt=lease.fence,
        node=record.get("node", ""),
        beside=record.get("beside", ()),
        host=lease.owner.machine if lease.owner else "",
        progress=lease.progress,
        seconds=round(max(0.0, time.time() - record["began"]), 1) if "began" in record else None,
        silent=round(silent, 1),
    )
