"""Where a step may run: what it needs of a node, what `--place` says about that, and why no node will do."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from cluster.step import Runnable

GB = 10**9
AUTO = "auto"
GPU_TYPE = "ray.io/accelerator-type"
"""The label by which Ray names a node's GPUs."""
SAY_AFTER = 15.0
"""Seconds for which needs may be impossible before that is said: nodes come and go."""

_WORD = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_NAME = re.compile(rf"(?:{_WORD}/)?{_WORD}")
_VALUE = re.compile(rf"!?{_WORD}|!?in\({_WORD}(?:,{_WORD})*\)")
_RULE = re.compile(r"(?:(?P<kind>[^:=]*):)?(?P<name>[^:=]*)=(?P<value>.*)", re.DOTALL)
_MISTAKEN = {"gpu": "gpus", "num_gpus": "gpus", "mem": "memory", "ram": "memory", "cpu": "", "cpus": "", "threads": ""}


@dataclass(frozen=True)
class Needs:
    """What one attempt at a step takes of a node while it runs; if it runs in several processes, what each takes."""

    cpus: float = 1
    gpus: float = 0
    """GPUs, or a fraction of one."""
    memory: int = 0
    """Host memory in bytes; 0 when nobody knows, and then none is reserved."""
    labels: tuple[tuple[str, str], ...] = ()
    """What the node must bear, as Ray's label selectors: `H100`, `!H100`, `in(H100,A100)`, `!in(T4)`."""
    processes: int = 1
    """How many processes are needed at once, on one node or several."""
    provisional: bool = field(default=False, compare=False)
    """Whether these are a generous guess: no step like it has been measured yet."""

    @property
    def amounts(self) -> dict[str, float]:
        """What one process takes, by the names of Ray's resources."""
        wanted = {"GPU": self.gpus, "CPU": self.cpus, "memory": float(self.memory)}
        return {resource: amount for resource, amount in wanted.items() if amount}

    def options(self) -> dict[str, Any]:
        """What one process takes, for Ray."""
        options: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.memory:
            options["memory"] = self.memory
        if self.labels:
            options["label_selector"] = dict(self.labels)
        return options


@dataclass(frozen=True)
class Machine:
    """One node: all that it has, busy or not."""

    resources: Mapping[str, float]
    labels: Mapping[str, str]
    id: str = ""

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Machine:
        """The node that `ray.nodes()` tells of."""
        return cls(record["Resources"], record.get("Labels") or {}, record["NodeID"])

    def bears(self, labels: Iterable[tuple[str, str]]) -> bool:
        """Whether it meets these label selectors."""
        return all(_matches(self.labels.get(name), selector) for name, selector in labels)

    def room(self, amounts: Mapping[str, float]) -> int:
        """How many processes that take so much fit on it at once, when nothing else runs on it."""
        return min(int(self.resources.get(resource, 0) / amount + 1e-6) for resource, amount in amounts.items())


@dataclass(frozen=True)
class Rule:
    """One `--place [KIND:]NAME=VALUE`: where steps of a run may run; no part of its recipe."""

    kind: str
    """The kind of steps that it is for; all when empty."""
    name: str
    """`gpus`, `memory` or a label."""
    value: str

    @classmethod
    def parse(cls, text: str) -> Rule:
        """The rule that somebody wrote.

        Raises:
            ValueError: it has another form, its name is none, or its value is not allowed.
        """
        found = _RULE.fullmatch(text)
        if found is None:
            raise ValueError(f"--place {text}: allowed is [KIND:]NAME=VALUE, such as train:gpus=0.5")
        value = re.sub(", *", ",", found["value"])  # Ray would take a blank for a part of the value after it
        rule = cls(found["kind"] or "", found["name"], value)
        if ":" in text and not rule.kind:
            raise ValueError(f"--place {text}: before the colon stands a kind of step, such as `train`")
        problem = rule._problem()
        if problem:
            raise ValueError(f"--place {text}: {problem}")
        return rule

    def _problem(self) -> str:
        if self.name in ("gpus", "memory"):
            return "" if self.value == AUTO else self._wrong_number()
        near = get_close_matches(self.name, ["gpus", "memory"], n=1, cutoff=0.8)
        if self.name in _MISTAKEN or near:
            meant = _MISTAKEN.get(self.name) or "".join(near)
            hint = f"; did you mean {meant}?" if meant else "; the CPUs of a step are its field `threads`"
            return f"allowed names are gpus, memory and labels of nodes, such as {GPU_TYPE}{hint}"
        if not _NAME.fullmatch(self.name):
            return f"'{self.name}' is no label; a label is such as {GPU_TYPE} or zone"
        if not _VALUE.fullmatch(self.value):
            return f"'{self.value}' is no value of a label; allowed are such as H100, !H100 and in(H100,A100)"
        return ""

    def _wrong_number(self) -> str:
        allowed = {"gpus": "0, a fraction such as 0.25, a whole number or auto", "memory": "GB above 0, or auto"}
        try:
            number = float(self.value)
        except ValueError:
            number = math.nan
        fine = 0 < number < math.inf if self.name == "memory" else 0 <= number < math.inf
        if fine and self.name == "gpus":  # Ray counts in ten-thousandths, and shares no GPU among steps that want more
            fine = number.is_integer() if number > 1 else number == 0 or number >= 1e-4
        return "" if fine else f"'{self.value}' is no {self.name}; allowed: {allowed[self.name]}"


def parse_rules(texts: Iterable[str]) -> tuple[Rule, ...]:
    """The rules sorted so that later ones win: those for one kind of step come after those for all.

    Raises:
        ValueError: one of them is none.
    """
    return tuple(sorted(map(Rule.parse, texts), key=lambda rule: rule.kind != ""))


def with_gpus(task: Runnable, gpus: float) -> Runnable:
    """The same task, told of another number of GPUs.

    Raises:
        ValueError: the number is part of what this task computes.
    """
    if task.gpus == gpus:
        return task
    moved = copy.copy(task)
    moved.__dict__["gpus"] = gpus  # tasks are frozen; this is a copy that nobody else has seen
    if moved.identity() != task.identity():
        raise ValueError(f"the gpus of `{task.kind}` are part of what it computes: set them in the recipe")
    return moved


def misfit(needs: Needs, machines: Sequence[Machine]) -> str:
    """Why no node could run this even if idle; empty if one could.

    Without any known node nothing is said: they may be about to join.
    """
    if not machines:
        return ""
    bearing = list(machines)
    for name, selector in needs.labels:
        if not any(machine.bears([(name, selector)]) for machine in machines):
            known = sorted({machine.labels[name] for machine in machines if name in machine.labels})
            return f"no node has label {name}={selector}: nodes have {', '.join(known) or f'no {name}'}"
        bearing = [machine for machine in bearing if machine.bears([(name, selector)])]
    marks = " and ".join(f"{name}={selector}" for name, selector in needs.labels)
    if not bearing:
        return f"no node has all the labels {marks}"
    whose = f" with {marks}" if marks else ""
    for resource, amount in needs.amounts.items():
        most = max(machine.resources.get(resource, 0) for machine in bearing)
        if most < amount:
            return (
                f"needs {_amount(resource, amount)}: the largest node{whose} has {_amount(resource, most, bare=True)}"
            )
    if not needs.amounts:
        return ""
    wanted = ", ".join(_amount(resource, amount) for resource, amount in needs.amounts.items())
    room = [machine.room(needs.amounts) for machine in bearing]
    if not any(room):
        return f"needs {wanted} on one node: no node{whose} has all of it"
    if sum(room) < needs.processes:
        return f"needs {wanted} for each of {needs.processes} processes: all nodes{whose} have room for {sum(room)}"
    return ""


class Nodes:
    """What the nodes could run, worked out once for each kind of needs until there are other nodes."""

    def __init__(self, machines: Callable[[], Sequence[Machine]]) -> None:
        """Nothing is worked out yet.

        Args:
            machines: the nodes as far as they are known; another object whenever they are others.
        """
        self._machines = machines
        self._of: Sequence[Machine] = ()
        self._misfits: dict[Needs, str] = {}
        self._rooms: dict[Needs, int] = {}

    def misfit(self, needs: Needs) -> str:
        """Why no node could run this, as `misfit` says it."""
        self._look()
        if needs not in self._misfits:
            self._misfits[needs] = misfit(needs, self._of)
        return self._misfits[needs]

    def room(self, needs: Needs) -> int:
        """How many attempts with these needs all nodes have room for together when nothing else runs on them."""
        self._look()
        if needs not in self._rooms:
            each = [machine.room(needs.amounts) for machine in self._of if machine.bears(needs.labels)]
            self._rooms[needs] = sum(each) // needs.processes
        return self._rooms[needs]

    def _look(self) -> None:
        machines = self._machines()
        if machines is not self._of:
            self._of = machines
            self._misfits.clear()
            self._rooms.clear()


class Turns:
    """Starts no more groups of processes than the nodes have room for: one that waits inside Ray occupies a process."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._taken = 0

    @contextlib.asynccontextmanager
    async def turn(self, needs: Needs) -> AsyncIterator[None]:
        """Holds a place while an attempt with these needs runs; waits for one first, unless it is a single process."""
        if needs.processes == 1:
            yield
            return
        while self._taken >= max(1, self._nodes.room(needs)):
            await asyncio.sleep(1.0)
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


UNSEEN = 60.0
"""Seconds without an attempt in the queue after which the wait for its kind of needs starts anew."""


class Unplaced:
    """How long the driver waits for a node that can meet some needs; reports once for each kind of needs."""

    def __init__(self, wait: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is impossible yet.

        Args:
            wait: seconds for which a node that can may still join.
            clock: in seconds.
        """
        self._wait = wait
        self._clock = clock
        self._since: dict[Needs, float] = {}
        self._looked: dict[Needs, float] = {}
        self._said: set[Needs] = set()

    def look(self, needs: Needs, why: str) -> tuple[bool, str]:
        """Takes in one look at the nodes.

        Args:
            needs: of an attempt that has not started.
            why: no node can run it; empty if one can.

        Returns:
            whether to say so now, and the end of its patience, in words, if that is reached.
        """
        now = self._clock()
        if not why or now - self._looked.get(needs, now) > UNSEEN:  # meanwhile such attempts have begun
            self._since.pop(needs, None)
            self._said.discard(needs)
        self._looked[needs] = now
        if not why:
            return False, ""
        lasted = now - self._since.setdefault(needs, now)
        if lasted >= self._wait:
            waited = f"; waited {self._wait:g} s for one that can (--wait-for-nodes)" if self._wait else ""
            return False, f"no node can run it: {why}{waited}"
        if lasted < SAY_AFTER or needs in self._said:
            return False, ""
        self._said.add(needs)
        return True, ""


def _matches(found: str | None, selector: str) -> bool:
    wanted = selector.removeprefix("!")
    values = wanted[3:-1].split(",") if wanted.startswith("in(") else [wanted]
    return (found in values) != selector.startswith("!")


def _amount(resource: str, amount: float, bare: bool = False) -> str:
    if resource == "memory":
        return f"{amount / GB:,.1f} GB".replace(".0 GB", " GB")
    return f"{amount:g}" if bare else f"{amount:g} {resource}{'s' if amount != 1 else ''}"
