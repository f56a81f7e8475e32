"""Measured memory of each sort of step, kept in the store, and the memory and part of a GPU that the next one gets."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cluster.meter import CONTEXT
from cluster.placement import AUTO, GB, GPU_TYPE, Machine, Needs, Rule, misfit, with_gpus
from cluster.step import Runnable, processes_of
from cluster.store import Store, StoreError

HEADROOM = 1.2
"""Bytes given for each byte measured: peaks differ a little from step to step."""
PARTS = 20
"""A GPU is given in twentieths."""
GRAIN = 64 * 2**20
"""Bytes to which peaks are rounded up: a profile is rewritten only when a peak has truly risen."""


@dataclass(frozen=True)
class GpuPeak:
    """The most that a step of some sort took of a type of GPU, and all that such a GPU has: bytes."""

    peak: int
    total: int

    @property
    def share(self) -> float:
        """The part of such a GPU that the next step is given."""
        return min(1.0, math.ceil(PARTS * (self.peak * HEADROOM + CONTEXT) / self.total) / PARTS)


@dataclass(frozen=True)
class Profile:
    """What steps of one sort took at the most."""

    host: int = 0
    """Resident bytes of the worker process."""
    gpus: Mapping[str, GpuPeak] = field(default_factory=dict)
    """By type of GPU, as nodes name theirs."""

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Profile:
        """The profile that `to_json` wrote."""
        return cls(record["host"], {name: GpuPeak(**gpu) for name, gpu in record["gpus"].items()})

    def to_json(self) -> dict[str, Any]:
        """A record for the store."""
        return {"host": self.host, "gpus": {name: asdict(gpu) for name, gpu in self.gpus.items()}}

    def with_step(self, memory: Mapping[str, Any]) -> Profile:
        """This profile, raised to cover a step with this `memory` entry in its manifest."""
        gpus = dict(self.gpus)
        if "gpu" in memory:
            found, known = memory["gpu"], gpus.get(memory["gpu"]["type"], GpuPeak(0, 0))
            gpus[found["type"]] = GpuPeak(max(known.peak, _rounded(found["peak"])), found["total"])
        return Profile(max(self.host, _rounded(memory["host"])), gpus)


class Profiles:
    """The profiles of a store. Several drivers may write one: the last wins, and the next step corrects it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, Profile | None] = {}

    def of(self, sort: str) -> Profile | None:
        """What is known here; nothing is read."""
        return self._known.get(sort)

    def load(self, sort: str) -> None:
        """Reads what the store has of a sort, once; a profile that cannot be read is measured anew."""
        if sort not in self._known:
            with contextlib.suppress(StoreError, ValueError, KeyError, TypeError):
                data = self._store.get(_path(sort))
                self._known.setdefault(sort, Profile.from_json(json.loads(data)) if data is not None else None)

    def learn(self, sort: str, memory: Mapping[str, Any]) -> bool:
        """Adds one measurement; returns whether the profile changed."""
        before = self._known.get(sort)
        after = (before or Profile()).with_step(memory)
        if after == before:
            return False
        self._known[sort] = after
        with contextlib.suppress(StoreError):  # then another run measures it again
            self._store.put(_path(sort), json.dumps(after.to_json(), sort_keys=True).encode())
        return True


class Placing:
    """Says what attempts need, from what their tasks ask for, the `--place` rules, and what earlier ones took."""

    def __init__(
        self,
        rules: Sequence[Rule] = (),
        profiles: Profiles | None = None,
        machines: Callable[[], Sequence[Machine]] = lambda: (),
    ) -> None:
        """Prepares the answers.

        Args:
            rules: in the order in which they count; of two with the same name the later holds.
            profiles: needed if a rule says `auto`.
            machines: the nodes as far as they are known: a step is given a part of a GPU only when its like was
                measured on every type of GPU that it may get.
        """
        self._rules = rules
        self._profiles = profiles
        self._machines = machines

    def load(self, task: Runnable) -> None:
        """Reads from the store what `needs` has to know of a task."""
        if self._profiles is not None and self.looks_up(task):
            self._profiles.load(sort_of(task))

    def looks_up(self, task: Runnable) -> bool:
        """Whether the needs of a task depend on a profile."""
        return AUTO in {rule.value for rule in self._chosen(task).values()}

    def learn(self, task: Runnable, manifest: Mapping[str, Any]) -> bool:
        """Adds what a finished step took; returns whether others of its sort now need something else."""
        if self._profiles is None or "memory" not in manifest or not self.looks_up(task):
            return False
        return self._profiles.learn(sort_of(task), manifest["memory"])

    def needs(self, task: Runnable, starved: int = 0) -> Needs:
        """What an attempt needs, as far as it is known now.

        Args:
            task: what it computes.
            starved: attempts that ran out of memory: the next gets a whole GPU, and twice the host memory for each, but
                no more than a node has.

        Raises:
            ValueError: a rule names its kind and would change what it computes.
        """
        if task.threads == 0:  # the driver's own
            return Needs(cpus=0)
        chosen = self._chosen(task)
        profile = self._profiles.of(sort_of(task)) if self._profiles is not None and self.looks_up(task) else None
        labels = tuple((rule.name, rule.value) for rule in chosen.values() if rule.name not in ("gpus", "memory"))
        memory, memory_known = _memory(chosen.get("memory"), profile)
        gpus, gpus_known = self._gpus(task, chosen.get("gpus"), profile, labels)
        processes = processes_of(task)
        if processes > 1:
            gpus = math.ceil(gpus)  # no two of them can meet on one GPU
        if starved:
            doubled = Needs(task.threads, math.ceil(gpus), memory * 2**starved, labels, processes)
            return _within(doubled, memory, self._machines())
        return Needs(task.threads, gpus, memory, labels, processes, provisional=not (memory_known and gpus_known))

    def _chosen(self, task: Runnable) -> dict[str, Rule]:
        """The rules that hold for a task, by name; those about GPUs only where one is asked for, unless it is named."""
        chosen: dict[str, Rule] = {}
        for rule in self._rules:
            if rule.kind not in ("", task.kind):
                continue
            if rule.name == "gpus" and not _may_move(task, rule):
                continue
            chosen[rule.name] = rule
        asked = chosen["gpus"].value if "gpus" in chosen else f"{task.gpus}"
        if asked != AUTO and float(asked) == 0 and GPU_TYPE in chosen and not chosen[GPU_TYPE].kind:
            del chosen[GPU_TYPE]
        return chosen

    def _gpus(
        self, task: Runnable, rule: Rule | None, profile: Profile | None, labels: Iterable[tuple[str, str]]
    ) -> tuple[float, bool]:
        """The GPUs of an attempt, and whether they are measured or fixed, not guessed."""
        if rule is None or rule.value != AUTO:
            return float(rule.value) if rule is not None else task.gpus, True
        if task.gpus > 1:
            return task.gpus, True
        machines = [machine for machine in self._machines() if machine.resources.get("GPU") and machine.bears(labels)]
        measured = profile.gpus if profile is not None else {}
        types = {machine.labels.get(GPU_TYPE, "") for machine in machines} or measured.keys()
        if not types or not types <= measured.keys():
            return 1, False
        return max(measured[name].share for name in types), True


def sort_of(task: Runnable) -> str:
    """A name for all steps that take the same memory: what the task computes, whatever its seeds and rates.

    Sizes are whole numbers; a search over learning rates or radii need not measure each of them.
    """
    identity = json.dumps(_sizes(task.identity()), sort_keys=True, separators=(",", ":"))
    return f"{task.kind}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _sizes(value: Any) -> Any:
    if isinstance(value, Mapping):
        sizes = {name: _sizes(of) for name, of in value.items() if name != "seed" and not name.endswith("_seed")}
        return {name: of for name, of in sizes.items() if not isinstance(of, float)}
    return [_sizes(each) for each in value] if isinstance(value, list | tuple) else value


def _may_move(task: Runnable, rule: Rule) -> bool:
    """Whether a rule about GPUs holds for a task; a kind that is named but must not be moved is an error."""
    if not rule.kind and task.gpus == 0:
        return False
    try:
        with_gpus(task, (task.gpus or 1) / PARTS if rule.value == AUTO else float(rule.value))
    except ValueError as error:
        if rule.kind:
            raise ValueError(f"--place {rule.kind}:gpus={rule.value}: {error}") from None
        return False
    return True


def _memory(rule: Rule | None, profile: Profile | None) -> tuple[int, bool]:
    """The host memory of an attempt in bytes, and whether it is measured or fixed, not guessed."""
    if rule is None or rule.value != AUTO:
        return round(float(rule.value) * GB) if rule is not None else 0, True
    return (round(profile.host * HEADROOM), True) if profile is not None else (0, False)


def _within(needs: Needs, least: int, machines: Sequence[Machine]) -> Needs:
    """The needs, with less host memory, but not below `least`, where no node that could run them has as much."""
    if not needs.memory or not misfit(needs, machines):
        return needs
    parts = {
        int(machine.resources.get("memory", 0)) // processes
        for machine in machines
        for processes in range(1, needs.processes + 1)
    }
    fewer = (replace(needs, memory=part) for part in sorted(parts, reverse=True) if least <= part < needs.memory)
    return next((less for less in fewer if not misfit(less, machines)), needs)


def _rounded(size: int) -> int:
    return math.ceil(size / GRAIN) * GRAIN


def _path(sort: str) -> str:
    return f"profiles/{sort}.json"
