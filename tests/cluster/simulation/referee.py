"""What must hold at every moment of every schedule, judged from what was committed and told, not from how."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from math import inf
from typing import Any

from cluster.failures import BUDGET
from cluster.flow import Handle
from cluster.ledger import folder_of
from cluster.order import Order
from tests.cluster.simulation.work import expected
from tests.cluster.simulation.world import Process, World

SLACK = 0.1
"""Seconds by which a beat may be older for who reads it than for who commits it."""


class Label:
    """On whose behalf a strand works: one execution of one attempt in one process."""

    __slots__ = ("attempt", "done", "driver", "kept", "key", "name", "process")

    def __init__(self, key: str, attempt: str, driver: str, process: Process) -> None:
        self.key = key
        self.attempt = attempt
        self.driver = driver
        self.process = process
        self.name = (attempt, process.pid)
        """Two executions in one process follow each other, and may take each other's late lease for their own."""
        self.done = 0
        """Turns of the work that are behind it."""
        self.kept = 0
        """Turns that the newest checkpoint holds."""


def turns_of(checkpoint: bytes) -> int:
    """How far a checkpoint leads."""
    return int(checkpoint[32:].split()[0])


class Holding:
    """A lease as the store saw it."""

    def __init__(self, label: Label, now: float) -> None:
        self.label = label
        self.since = now
        self.beaten = now
        self.silence = 0.0
        """The longest time between two beats so far, but for what was the store's own."""
        self.state = "held"


class Referee:
    """Watches a world; the first thing that must not be ends it."""

    def __init__(self, world: World, ttl: float) -> None:
        self._world = world
        self.ttl = ttl
        """Seconds of silence after which a lease may be passed over."""
        self.violations: list[str] = []
        self.standing: dict[str, dict[str, Any]] = {}
        """The accepted manifest of each key that has one."""
        self.accepted: Counter[str] = Counter()
        self.set_aside: Counter[str] = Counter()
        self.damaged: set[str] = set()
        """Paths of published objects that are not what was published, or gone."""
        self._files: dict[str, tuple[str, str]] = {}
        """Path -> key and SHA-256 of each file that a standing manifest names."""
        self._folders: dict[tuple[str, str], Any] = {}
        """Key and fence -> who holds it."""
        self.leases: dict[tuple[str, int], Holding] = {}
        self._saves: Counter[str] = Counter()
        self._retries: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self._seen: dict[tuple[str, str], int] = {}
        self.attempts: Counter[tuple[str, str]] = Counter()
        self._gone: set[str] = set()
        """Attempts whose driver has an outcome for them, or ended them itself."""
        self.failed: dict[tuple[str, str], str] = {}
        self.handles: dict[str, Handle] = {}
        self.outages: list[tuple[float, float]] = []
        """When nobody reached the store: from and until."""
        self.stopping: set[str] = set()
        """Drivers that were asked to stop: they end what does not leave."""
        self.at_work: Callable[[str], None] = lambda key: None
        """Called with a key when work on it begins anew, and when it is published."""

    def violate(self, what: str) -> None:
        self._world.note("VIOLATION", what)
        self.violations.append(what)
        self._world.finish()

    # the store

    def on_write(self, objects: Mapping[str, bytes], path: str, data: bytes, who: Label | None) -> None:
        parts = path.split("/")
        if parts[0] != "steps":
            return
        key, name = parts[2], parts[3]
        if name == "manifest.json":
            self._on_publish(objects, key, path, data)
        elif name.startswith("lease-"):
            self._on_lease(key, int(name[6:10]), path in objects, data, who)
        elif name.isdigit():
            self._on_file(key, name, parts[4], path, data, who)

    def _on_publish(self, objects: Mapping[str, bytes], key: str, path: str, data: bytes) -> None:
        if key in self.standing and path not in self.damaged:
            self.violate(f"the publication of {key[:8]} was replaced by another")
        manifest = json.loads(data)
        for name, entry in manifest["files"].items():
            found = objects.get(entry["path"])
            whole = found is not None and hashlib.sha256(found).hexdigest() == entry["sha256"]
            if not whole and entry["path"] not in self.damaged:
                self.violate(f"{key[:8]} was published before its file {name} was whole")
            self._files[entry["path"]] = (key, entry["sha256"])
        self.standing[key] = manifest
        self.accepted[key] += 1
        self.at_work(key)
        self.damaged.discard(path)

    def _on_lease(self, key: str, fence: int, known: bool, data: bytes, who: Label | None) -> None:
        now = self._world.now
        if who is None:
            self.violate(f"the lease {fence} on {key[:8]} was written by no attempt")
            return
        if known:
            holding = self.leases[key, fence]
            if holding.label.name != who.name:
                self.violate(f"the lease {fence} on {key[:8]} was overwritten by another attempt")
            holding.silence = max(holding.silence, self._silence(holding.beaten))
            holding.beaten = now
            holding.state = json.loads(data)["state"]
            return
        before = self.leases.get((key, fence - 1))
        if before is not None and not self._may_pass_over(before):
            self.violate(f"the lease on {key[:8]} was taken from {before.label.attempt}, which is alive and beating")
        self.leases[key, fence] = Holding(who, now)

    def _may_pass_over(self, before: Holding) -> bool:
        """Whether a holder is known to be gone: from its driver's own view, or after a silence."""
        if before.state != "held" or before.label.process.dead or before.label.attempt in self._gone:
            return True
        return self._was_silent(before) or f"lease {before.label.key}" in self.damaged

    def _was_silent(self, holding: Holding) -> bool:
        return max(holding.silence, self._silence(holding.beaten)) > self.ttl - SLACK

    def _silence(self, since: float) -> float:
        """How long nothing was heard that could have been; an outage may end a look's time before it is noticed."""
        now = self._world.now
        away = sum(max(0.0, min(until, now) - max(begin, since) - self.ttl / 3) for begin, until in self.outages)
        return now - since - away

    def on_store_away(self, away: bool) -> None:
        """The whole store goes, or comes back."""
        now = self._world.now
        if away and not self.store_is_away:
            self.outages.append((now, inf))
        elif self.store_is_away and not away:
            self.outages[-1] = (self.outages[-1][0], now)

    @property
    def store_is_away(self) -> bool:
        return bool(self.outages) and self.outages[-1][1] == inf

    def on_kill(self, order: Order) -> None:
        """A driver ends an attempt of its own: one that is at work must have been silent."""
        holding = self.leases.get((order.key, self._newest(order.key)))
        if holding is None or holding.label.attempt != order.attempt or order.driver in self.stopping:
            return
        young = self._world.now - holding.since < self.ttl  # what the driver saw may be from before the lease
        if not young and not self._may_pass_over(holding):
            self.violate(f"{order.attempt} was ended by its driver, though it is alive and beating")

    def _on_file(self, key: str, fence: str, name: str, path: str, data: bytes, who: Label | None) -> None:
        holder = self.leases.get((key, int(fence)))
        if who is None or holder is None or holder.label.name != who.name:
            self.violate(f"{name} of {key[:8]} was written under a fence that its writer does not hold")
        if path in self._files and hashlib.sha256(data).hexdigest() != self._files[path][1]:
            self.violate(f"the published file {name} of {key[:8]} was overwritten")
        if name == "checkpoint" and who is not None:
            self._saves[who.attempt] += 1
            who.kept = turns_of(data)

    def on_delete(self, objects: Mapping[str, bytes], path: str) -> None:
        parts = path.split("/")
        if parts[0] != "steps":
            return
        key = parts[2]
        if parts[3] == "manifest.json":
            files = self.standing[key]["files"].values() if key in self.standing else ()
            if path not in self.damaged and not any(entry["path"] in self.damaged for entry in files):
                self.violate(f"the whole publication of {key[:8]} was removed")
            for entry in files:
                self._files.pop(entry["path"], None)
            self.damaged.discard(path)
            self.standing.pop(key, None)
            self.set_aside[key] += 1
        elif path in self._files and path not in self.damaged:
            self.violate(f"the whole file {parts[-1]} of the published {key[:8]} was removed")

    def on_damage(self, path: str) -> None:
        self.damaged.add(path)
        parts = path.split("/")
        if parts[3].startswith("lease-"):
            self.damaged.add(f"lease {parts[2]}")

    # what drivers tell and workers do

    def on_compute(self, key: str, inputs: Mapping[str, str]) -> None:
        self.at_work(key)
        for name, upstream in inputs.items():
            if not self.accepted[upstream]:
                self.violate(f"{key[:8]} is computed while its input {name} is unpublished")

    def _newest(self, key: str) -> int:
        """The highest fence of a step, or 0."""
        fence = 0
        while (key, fence + 1) in self.leases:
            fence += 1
        return fence

    def kept_for(self, objects: Mapping[str, bytes], label: Label) -> int:
        """The turns that the newest whole checkpoint holds which was accepted before an attempt's own lease."""
        fence = self._newest(label.key)
        while self.leases[label.key, fence].label.name != label.name:
            fence -= 1
        for earlier in range(fence - 1, 0, -1):
            path = f"{folder_of(label.key)}/{earlier:04d}/checkpoint"
            if path in objects and path not in self.damaged:
                return turns_of(objects[path])
        return 0

    def on_resume(self, objects: Mapping[str, bytes], label: Label, kept: int, first: int) -> None:
        """An attempt begins: what was kept when it asked, or since then, is not computed again."""
        label.done = label.kept = first
        if first < kept and first != self.kept_for(objects, label):
            self.violate(f"{label.attempt} began {label.key[:8]} at turn {first}, though a checkpoint holds {kept}")

    def on_left(self, label: Label) -> None:
        """An attempt left as it was asked to."""
        if label.done > label.kept:
            self.violate(f"{label.attempt} left {label.key[:8]} at turn {label.done} with {label.kept} saved")

    def on_outcome(self, attempt: str) -> None:
        self._gone.add(attempt)

    def on_tell(self, driver: str, state: str, handle: Handle, news: Mapping[str, Any]) -> None:
        key = handle.key
        mine = (driver, key)
        if state == "asked":
            self.handles[key] = handle
        elif state == "started":
            self.attempts[mine] += 1
            if self.failed.get(mine) == "user":
                self.violate(f"{key[:8]} was tried again after its own mistake")
        elif state == "retried":
            self._on_retry(mine, news["cause"], news["attempt"])
        elif state == "recomputed":  # what was published, and is to be computed again, has a budget of its own
            self._retries[mine].clear()
        elif state == "failed":
            self.failed[mine] = news["cause"]
        elif state in ("published", "found"):
            self.at_work(key)

    def _on_retry(self, mine: tuple[str, str], cause: str, attempt: str) -> None:
        retries = self._retries[mine]
        if self._saves[attempt]:
            retries.clear()
        retries[cause] += 1
        if retries[cause] > BUDGET[cause]:  # type: ignore[index]
            self.violate(f"{mine[1][:8]} was retried {retries[cause]} times after `{cause}`")

    def causes_of(self, driver: str) -> set[str]:
        """Why steps of a driver failed for good."""
        return {cause for (whose, _), cause in self.failed.items() if whose == driver}

    # the end

    def judge(self, objects: Mapping[str, bytes]) -> None:
        """At the end: nothing is lost, and all is as computed without a fault."""
        memory: dict[str, Any] = {}
        for key, handle in self.handles.items():
            right = expected(handle, memory)
            manifest = self.standing.get(key)
            if right is None:
                if manifest is not None:
                    self.violate(f"{key[:8]} cannot be computed, but was published")
                continue
            if manifest is None or f"steps/{key[:2]}/{key}/manifest.json" not in objects:
                self.violate(f"{key[:8]} was lost")
                continue
            self._judge_one(objects, key, manifest, right)

    def _judge_one(self, objects: Mapping[str, bytes], key: str, manifest: Mapping[str, Any], right: Any) -> None:
        metrics, files, inputs = right
        if manifest["metrics"] != metrics or manifest["inputs"] != inputs:
            self.violate(f"{key[:8]} holds {manifest['metrics']}, not {metrics}")
        if set(manifest["files"]) != set(files):
            self.violate(f"{key[:8]} has other files than it should")
        for name, data in files.items():
            if objects.get(manifest["files"][name]["path"]) != data:
                self.violate(f"the file {name} of {key[:8]} is not what it should be")
