"""What `explain` says of a step: where its result comes from, or why no stored result serves instead of it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cluster.flow import describe
from cluster.ledger import Damaged, Lease, Ledger, Published, folder_of
from cluster.runs import all_runs, events_of, named_steps
from cluster.store import Store
from workflows.command.inspect import progress_words, step_view
from workflows.command.recipe import BadRequest

KEY = re.compile(r"[0-9a-f]{1,64}")
MANIFEST = re.compile(r"steps/../([0-9a-f]{64})/manifest\.json")
ABSENT = "(default)"


def explain_step(store: Store, key_prefix: str) -> dict[str, Any]:
    """What is known of a step, as JSON.

    Of a published step: `task`, `inputs`, `environment`, `published` (seconds since the epoch), `seconds`, `attempts`,
    `resumed` (whether it went on from a checkpoint), `files` with whether their bytes are those that were published.
    Of any other: `state`, `progress` or `failure`, and `nearest`, the stored step of the same kind that differs least,
    with the `differences` that keep it from being reused.

    Raises:
        BadRequest: no step, or several, start like this.
    """
    known = _Known(store)
    key = known.resolve(key_prefix)
    runs = [{"run": run, "where": describe(step.get("at", {}))} for run, step in known.namings(key)]
    leases = _leases(store, key)
    explanation = {
        "key": key,
        "task": known.task(key),
        "inputs": {
            name: {"key": upstream, "step": known.words(upstream)} for name, upstream in known.inputs(key).items()
        },
        "runs": runs,
        "attempts": [_attempt(lease) for lease in leases],
    }
    found = known.find(key)
    if isinstance(found, Published):
        return {**explanation, "state": "stored", **_publication(found, leases)}
    return {**explanation, **_absence(store, known, key)}


def explanation_text(explanation: Mapping[str, Any]) -> str:
    """An explanation in words."""
    task = explanation["task"]
    lines = [f"step {explanation['key']}", f"is {_headed(task)}" if task else "is known by its key alone"]
    lines += [f"  {name}: {_value(value)}" for name, value in _flat(task) if name not in ("kind", "version")]
    for name, upstream in explanation["inputs"].items():
        lines.append(f"input {name}: {upstream['step']} [{upstream['key'][:12]}]")
    for naming in explanation["runs"]:
        lines.append(f"named by run {naming['run']}{': ' if naming['where'] else ''}{naming['where']}")
    lines += _published_lines(explanation) if explanation["state"] == "stored" else _absent_lines(explanation)
    return "\n".join(lines)


@dataclass(frozen=True)
class Difference:
    """One field in which two steps differ, or steps upstream of them."""

    field: str
    stored: Any
    wanted: Any
    via: tuple[str, ...] = ()
    """The inputs that lead from the two steps to those that differ."""

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"field": ".".join((*self.via, self.field)), "stored": self.stored, "wanted": self.wanted}


class _Known:
    """What the store tells of steps: their manifests, the plans and events of runs, and leases."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ledger = Ledger(store)
        self._found: dict[str, Published | Damaged | None] = {}
        self._leased: dict[str, Mapping[str, Any]] = {}
        self._differences: dict[tuple[str, str], list[Difference]] = {}
        self._named = {run.id: named_steps(store, run.id) for run in all_runs(store)}

    def find(self, key: str) -> Published | Damaged | None:
        if key not in self._found:
            try:
                self._found[key] = self._ledger.find(key)
            except Damaged as damaged:
                self._found[key] = damaged
        return self._found[key]

    def namings(self, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The runs that name a step, and what each knows of it."""
        return ((run, steps[key]) for run, steps in self._named.items() if key in steps)

    def resolve(self, prefix: str) -> str:
        prefix = prefix.lower()
        if not KEY.fullmatch(prefix):
            raise BadRequest(f"'{prefix}' is no step's key: a key is 64 hexadecimal digits, its beginning is enough")
        found = {key for steps in self._named.values() for key in steps if key.startswith(prefix)}
        for folder in self._store.folders("steps"):
            if folder.startswith(prefix[:2]):
                found |= {key for key in self._store.folders(f"steps/{folder}") if key.startswith(prefix)}
        if len(found) > 1:
            several = ", ".join(f"{key[:12]} ({self.words(key)})" for key in sorted(found)[:5])
            raise BadRequest(f"{len(found)} steps start with '{prefix}': {several}{', ...' if len(found) > 5 else ''}")
        if not found:
            raise BadRequest(f"no step starts with '{prefix}': none is stored, and no run names one")
        return found.pop()

    def record(self, key: str) -> Mapping[str, Any]:
        """`task` and `inputs` of a step, from wherever they are written."""
        found = self.find(key)
        if isinstance(found, Published):
            return found.manifest
        for _, step in self.namings(key):
            if "task" in step:
                return step
        if key not in self._leased:
            lease = self._ledger.current_lease(key)
            self._leased[key] = lease.record if lease is not None else {}
        return self._leased[key]

    def task(self, key: str) -> Mapping[str, Any]:
        task: Mapping[str, Any] = self.record(key).get("task", {})
        return task

    def inputs(self, key: str) -> Mapping[str, str]:
        inputs: Mapping[str, str] = self.record(key).get("inputs", {})
        return inputs

    def words(self, key: str) -> str:
        """A step in words."""
        kind = self.task(key).get("kind") or next((step.get("kind", "") for _, step in self.namings(key)), "")
        where = next((describe(step.get("at", {})) for _, step in self.namings(key)), "")
        return " ".join(filter(None, (kind, where))) or "a step"

    def stored_of(self, kind: str) -> Iterator[str]:
        """The keys of all stored steps of a kind."""
        for path in self._store.paths("steps"):
            if match := MANIFEST.fullmatch(path):
                found = self.find(match[1])
                if isinstance(found, Published) and found.manifest["task"]["kind"] == kind:
                    yield match[1]

    def differences(self, stored: str, wanted: str) -> list[Difference]:
        """In what two steps differ, and in what those do that feed them; the same change is named once."""
        if (stored, wanted) in self._differences:
            return self._differences[stored, wanted]
        own = _unequal(_flat(self.task(stored)), _flat(self.task(wanted)))
        found = [Difference(name, old, new) for name, old, new in own]
        for name, old, new in _unequal(self.inputs(stored).items(), self.inputs(wanted).items()):
            if self.task(old) and self.task(new):
                found += [replace(cause, via=(name, *cause.via)) for cause in self.differences(old, new)]
            else:
                found.append(Difference(name, self._input_words(old), self._input_words(new)))
        shortest: dict[tuple[str, str, str], Difference] = {}
        for difference in sorted(found, key=lambda difference: len(difference.via)):
            change = (difference.field, str(difference.stored), str(difference.wanted))
            shortest.setdefault(change, difference)
        self._differences[stored, wanted] = list(shortest.values())
        return self._differences[stored, wanted]

    def nearest(self, key: str) -> tuple[str, list[Difference]] | None:
        """The stored step of the same kind, at the same place if there is one, that differs in the fewest fields."""
        others = [other for other in self.stored_of(self.task(key).get("kind", "")) if other != key]
        here = self._places(key)
        distances = {other: self._distance(other, key) for other in others}
        candidates = [other for other in others if self._places(other) & here]
        if not candidates:
            candidates = [other for other in others if distances[other] == min(distances.values())]
        ranked = [(len(self.differences(other, key)), distances[other], other) for other in candidates]
        return (min(ranked)[2], self.differences(min(ranked)[2], key)) if ranked else None

    def _distance(self, stored: str, wanted: str) -> int:
        own = _unequal(_flat(self.task(stored)), _flat(self.task(wanted)))
        inputs = _unequal(self.inputs(stored).items(), self.inputs(wanted).items())
        return len(list(own)) + len(list(inputs))

    def _places(self, key: str) -> set[str]:
        return {describe(step.get("at", {})) for _, step in self.namings(key)}

    def _input_words(self, key: str) -> str:
        return "(none)" if key == ABSENT else f"{self.words(key)} [{key[:12]}]"


def _publication(published: Published, leases: list[Lease]) -> dict[str, Any]:
    manifest = published.manifest
    earlier = [lease for lease in leases if lease.fence < manifest["fence"]]
    return {
        "published": manifest["published"],
        "seconds": manifest["seconds"],
        "environment": manifest["environment"],
        "resumed": any(lease.record.get("saves", 0) > 0 for lease in earlier),
        "metrics": manifest["metrics"],
        "files": [_file(published, name, entry) for name, entry in manifest["files"].items()],
    }


def _file(published: Published, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    try:
        published.read(name)
        damage = None
    except Damaged as error:
        damage = str(error)
    return {"name": name, "path": entry["path"], "bytes": entry["size"], "intact": damage is None, "damage": damage}


def _absence(store: Store, known: _Known, key: str) -> dict[str, Any]:
    failure = _last_failure(store, known, key)
    view = step_view(Ledger(store), {"key": key}, store.clock(), failed=failure is not None)
    nearest = known.nearest(key)
    return {
        "state": view.state,
        "progress": list(view.progress) if view.progress else None,
        "checkpoint": any(path.endswith("/checkpoint") for path in store.paths(folder_of(key))),
        "failure": failure if view.state == "failed" else None,
        "damage": str(known.find(key)) if view.state == "damaged" else None,
        "nearest": None
        if nearest is None
        else {
            "key": nearest[0],
            "step": known.words(nearest[0]),
            "differences": [difference.record() for difference in nearest[1]],
        },
    }


def _last_failure(store: Store, known: _Known, key: str) -> dict[str, Any] | None:
    """How the step failed, unless something else was heard of it later."""
    seen = [event for run, _ in known.namings(key) for event in events_of(store, run) if event.get("key") == key]
    last = max(seen, key=lambda event: float(event["time"]), default=None)
    if last is None or last["state"] != "failed":
        return None
    return {name: last.get(name, "") for name in ("cause", "message", "log", "time")}


def _leases(store: Store, key: str) -> list[Lease]:
    newest = Ledger(store).current_lease(key)
    fences = range(1, newest.fence + 1) if newest else ()
    return [lease for fence in fences if (lease := Ledger(store).lease_at(key, fence)) is not None]


def _attempt(lease: Lease) -> dict[str, Any]:
    record, owner = lease.record, lease.owner
    return {
        "fence": lease.fence,
        "attempt": record.get("attempt", ""),
        "state": record["state"],
        "host": owner.machine if owner else "",
        "process": owner.pid if owner else None,
        "checkpoints": record.get("saves", 0),
    }


def _published_lines(explanation: Mapping[str, Any]) -> list[str]:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(explanation["published"]))
    environment = ", ".join(f"{name} {_value(value)}" for name, value in explanation["environment"].items())
    lines = [f"published {when}, after {explanation['seconds']:g} s", f"environment: {environment}"]
    attempts = explanation["attempts"]
    resumed = "; it went on from a checkpoint of an earlier one" if explanation["resumed"] else ""
    lines.append(f"attempts: {len(attempts)}{resumed}")
    lines += [
        f"file {file['name']}: {file['bytes']:,} bytes, {file['damage'] or 'intact'} ({file['path']})"
        for file in explanation["files"]
    ]
    return lines


def _absent_lines(explanation: Mapping[str, Any]) -> list[str]:
    progress = explanation["progress"]
    words = {
        "waiting": "never started",
        "running": f"running {progress_words(progress)}".rstrip(),
        "silent": "begun; whoever computes it has been silent for a while, and may be dead",
        "stopped": "begun, not finished, and nobody is at work on it",
        "failed": "failed",
        "damaged": str(explanation["damage"]),
    }
    lines = [f"not stored: {words[explanation['state']]}"]
    if explanation["checkpoint"]:
        lines.append("its next attempt goes on from a checkpoint")
    if failure := explanation["failure"]:
        lines[0] += f" ({failure['cause']}): {failure['message']}"
        lines += [f"log in the store: {failure['log']}"] if failure["log"] else []
    nearest = explanation["nearest"]
    if nearest is None:
        return [*lines, "nothing to reuse: no step of this kind is stored"]
    lines.append(f"the nearest stored step is {nearest['step']} [{nearest['key'][:12]}]; it is not reused, because of")
    for difference in nearest["differences"]:
        lines.append(f"  {difference['field']}: {_value(difference['stored'])} -> {_value(difference['wanted'])}")
    return lines


def _headed(task: Mapping[str, Any]) -> str:
    return f"{task['kind']}, version {task['version']}" if "version" in task else str(task["kind"])


def _flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Nested fields as dotted paths; a component without fields of its own is its kind."""
    if isinstance(value, Mapping) and value:
        pairs = [(str(name), item) for name, item in value.items()]
    elif isinstance(value, list) and value:
        pairs = [(str(index), item) for index, item in enumerate(value)]
    else:
        return [(path, value)] if path else []
    return [leaf for name, item in pairs for leaf in _flat(item, f"{path}.{name}".lstrip("."))]


def _unequal(stored: Any, wanted: Any) -> Iterator[tuple[str, Any, Any]]:
    old, new = dict(stored), dict(wanted)
    for name in [*old, *(name for name in new if name not in old)]:
        if old.get(name, ABSENT) != new.get(name, ABSENT):
            yield name, old.get(name, ABSENT), new.get(name, ABSENT)


def _value(value: Any) -> str:
    text = str(value)
    return text[:12] if KEY.fullmatch(text) and len(text) == 64 else text
