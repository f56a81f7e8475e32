"""What is wrong with the nodes of a cluster, by what they say of themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.settings import RAY_ENVIRONMENT
from workflows.command.check import GIGABYTE, MEMORY_A_CPU, ROOM, SKEW, TWO_WINNERS, UNCONDITIONAL, Check, State
from workflows.command.probe import THREADS

LATE = "no answer in time"
NAMED = 5
"""Nodes that are named one by one where many have the same trouble."""


@dataclass(frozen=True)
class Node:
    """One node, and what it answered."""

    about: Mapping[str, Any]
    """As `probe` describes it."""

    @property
    def name(self) -> str:
        """The host and the beginning of Ray's name for it."""
        return f"{self.about['host']} {self.about['id'][:8]}" + (" (head)" if self.about["head"] else "")

    @property
    def report(self) -> Mapping[str, Any]:
        """What it says of itself; empty where it did not."""
        said = self.about.get("report")
        return said if isinstance(said, dict) else {}

    @property
    def answers(self) -> bool:
        """Whether it said anything."""
        return bool(self.report)

    def part(self, name: str) -> Mapping[str, Any]:
        """A part of its report, or `{"error": …}`."""
        said: Mapping[str, Any] = self.report.get(name, {"error": LATE})
        return said


@dataclass(frozen=True)
class Finding:
    """Something about one node that is not as it should be."""

    state: State
    found: str
    advice: str


Judge = Callable[[Node, Mapping[str, str]], Iterator[Finding]]


def judge(nodes: Sequence[Node], here: Mapping[str, str], marker: str) -> list[Check]:
    """All that is wrong with the nodes, the same trouble of several in one line; and what is well.

    Args:
        nodes: that were asked.
        here: versions of Ray, Python, PyTorch and hedgerow that they should have.
        marker: what was written to the store from here; empty if that failed.
    """
    versions = ", ".join(f"{name} {version}" for name, version in here.items())
    judges: dict[str, tuple[Judge, str]] = {
        "nodes: answers": (_silence, "all answered"),
        "nodes: versions": (_versions, versions),
        "nodes: store": (_store, "reached, and of two writers of one object the first wins"),
        "nodes: clocks": (_clock, f"less than {SKEW:g} s apart"),
        "nodes: CPUs": (_cpus, "as many as Ray was told of, and no more threads"),
        "nodes: GPUs": (_gpus, f"PyTorch sees the {sum(node.about['gpus'] for node in nodes):g} that Ray was told of"),
        "nodes: memory": (_memory, "enough"),
        "nodes: disks": (_disks, "enough room"),
        "nodes: settings": (_settings, "partitions will be noticed in seconds"),
        "nodes: token": (_token, "mode `token`"),
    }
    checks = []
    for name, (function, well) in judges.items():
        asked = nodes if function is _silence else [node for node in nodes if node.answers]
        found: dict[Finding, list[str]] = {}
        for node in asked:
            for finding in function(node, {**here, "marker": marker}):
                found.setdefault(finding, []).append(node.name)
        checks += [
            Check(name, finding.state, f"{_named(names)}: {finding.found}", finding.advice)
            for finding, names in found.items()
        ]
        if asked and not found:
            checks.append(Check(name, "ok", well))
    return [*checks, *_race(nodes, marker)]


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _silence(node: Node, here: Mapping[str, str]) -> Iterator[Finding]:
    if node.answers:
        return
    errors = [said[0] for said in (node.about.get("clock"), node.about.get("report")) if isinstance(said, list)]
    found = errors[0] if errors else "no answer: it is frozen, cut off, or has no room to start a worker"
    yield Finding("wrong", found, "look at the machine; end its Ray processes and start them again, or drain it")


def _versions(node: Node, here: Mapping[str, str]) -> Iterator[Finding]:
    report, hedgerow, torch = node.report, node.part("hedgerow"), node.part("torch")
    same = "install the same on all nodes, best by one image"
    if "error" in hedgerow:
        found = f"hedgerow cannot be imported: {hedgerow['error']}"
        yield Finding("wrong", found, "install it on all nodes, best by one image; or ship it with `hedgerow submit`")
    elif hedgerow["version"] != here["hedgerow"]:
        yield Finding("wrong", f"hedgerow {hedgerow['version']}, here {here['hedgerow']}", same)
    if report["ray"] != here["ray"]:
        yield Finding("wrong", f"Ray {report['ray']}, here {here['ray']}", same)
    if report["python"] != here["python"]:
        minor = report["python"].split(".")[:2] == here["python"].split(".")[:2]
        yield Finding("warn" if minor else "wrong", f"Python {report['python']}, here {here['python']}", same)
    if torch.get("error") == LATE:
        advice = "is it busy, or its disk slow? Steps will start as slowly"
        yield Finding("warn", "PyTorch takes very long to import", advice)
    elif "error" in torch:
        yield Finding("wrong", f"PyTorch cannot be imported: {torch['error']}", same)
    elif _release(torch["version"]) != _release(here["torch"]):
        found = f"PyTorch {torch['version']}, here {here['torch']}"
        yield Finding("warn", found, f"{same}: the last bits of results depend on it")


def _release(version: str) -> str:
    """Without the build: a driver has no GPU where nodes have some."""
    return version.split("+")[0]


def _store(node: Node, here: Mapping[str, str]) -> Iterator[Finding]:
    store = node.part("store")
    if "error" in store:
        if "error" not in node.part("hedgerow"):  # without hedgerow it was not tried
            advice = "give the node a way to the store, and credentials in the environment that Ray starts with"
            reason = store["error"].split(f"{node.about['id']}: ")[-1]  # without the path of the node's own object
            yield Finding("wrong", f"the store is not reached: {reason}", advice)
    elif here["marker"] and store["marker"] != here["marker"]:
        advice = "give a folder that all machines share, or the URL of an object store"
        yield Finding("wrong", "has a store of its own: what was written here is not there", advice)
    elif not store["one_winner"]:
        yield Finding("wrong", TWO_WINNERS, UNCONDITIONAL)


def _race(nodes: Sequence[Node], marker: str) -> Iterator[Check]:
    """All nodes wrote one object on condition that it was not there."""
    ran = [node for node in nodes if node.answers and marker and node.part("store").get("marker") == marker]
    winners = [node.name for node in ran if node.part("store")["won"]]
    if len(winners) > 1:
        found = f"{_named(winners)} were each told that they alone wrote an object"
        yield Check("nodes: race", "wrong", found, UNCONDITIONAL)
    elif len(ran) > 1:
        yield Check("nodes: race", "ok", f"of {len(ran)} writers at once one was told that it won")


def _clock(node: Node, here: Mapping[str, str]) -> Iterator[Finding]:
    about = node.about
    skew = max(about["asked"] - about["clock"], about["clock"] - about["answered"], 0.0)
    if skew > SKEW:
        yield Finding("warn", f"its clock is {skew:.0f} s off this machine's", "set its clock (NTP)")
        return
    ahead = node.part("store").get("ahead", 0.0)
    if abs(ahead) > SKEW:
        yield Finding("warn", f"its clock is {abs(ahead):.0f} s off the store's", "set its clock (NTP)")


def _cpus(node: Node, here: Mapping[str, str]) -> Iterator[Finding]:
    told, usable = node.about["cpus"], node.part("hedgerow").get("cpus", node.report["cpus"])
    if told > usable:
        found = f"Ray was told of {told:g} CPUs, and {usable} can be used: steps will slow each other"
        yield Finding("warn", found, f"start it with --num-cpus {usable}")
    for name in THREADS:
        value = node.report["environment"].get(name)
        if value is not None and (not value.isdigit() or int(value) > usable):
            advice = f"unset {name}: tasks set their threads themselves"
            yield Finding("warn", f"{name}={value} for {usable} CPUs", advice)


def _gpus(node: Node, here: Mapping[str, str]) -> Iterator[Finding]:
    told, seen = node.about["gpus"], node.part("torch").get("gpus")
    if seen is None:  # what is wrong with PyTorch there is said
        return
    if told > seen:
        found = f"Ray was told of {told:g} GPUs, and PyTorch sees {seen}"
        yield Finding("wrong", found, "install a build of PyTorch for CUDA that fits the driver, or correct --num-gpus")
    elif told < seen:
        found = f"PyTorch sees {seen} GPUs, and Ray was told of {told:g}"
        yield Finding("warn", found, f"start it with --num-gpus {seen}, unless they are for others")


def _memory(node: Node, here: Mapping[str, str]) -> Iterator[Finding]:
    memory = node.part("memory")
    if "error" in memory:
        yield Finding("warn", f"memory: {memory['error']}", "install psutil there")
    elif memory["free"] < MEMORY_A_CPU * GIGABYTE * max(node.about["cpus"], 1):
        found = f"{memory['free'] / GIGABYTE:.1f} GB free of {memory['total'] / GIGABYTE:.1f} GB"
        advice = f"about {MEMORY_A_CPU:g} GB a CPU are needed: end what takes them, or give it fewer CPUs"
        yield Finding("warn", f"{found}, for {node.about['cpus']:g} CPUs", advice)


def _disks(node: Node, here: Mapping[str, str]) -> Iterator[Finding]:
    disks = {**node.report["disks"], "the cache": node.part("cache")}
    for name, disk in disks.items():
        if "error" not in disk and disk["free"] < ROOM * GIGABYTE:
            found = f"{disk['free'] / GIGABYTE:.1f} GB left for {name} at {disk['path']}"
            yield Finding("warn", found, "make room, or start it with --temp-dir or HEDGEROW_CACHE on another disk")


def _settings(node: Node, here: Mapping[str, str]) -> Iterator[Finding]:
    missing = [name for name in RAY_ENVIRONMENT if name not in node.report["environment"]]
    if missing:
        found = f"started without {', '.join(missing)}: Ray's own values let a run hang when a node is cut off"
        wanted = " ".join(f"{name}={RAY_ENVIRONMENT[name]}" for name in missing)
        yield Finding("warn", found, f"start it with {wanted}, as the files of `hedgerow cluster manifest` do")


def _token(node: Node, here: Mapping[str, str]) -> Iterator[Finding]:
    file = node.part("token_file")
    # Unset, it is `disabled`, whatever files there are: a head that has turned tokens on by itself has set it, too.
    if node.report["environment"].get("RAY_AUTH_MODE", "disabled") == "disabled":
        advice = "start the cluster with RAY_AUTH_MODE=token and a RAY_AUTH_TOKEN"
        yield Finding("warn", "mode `disabled`: whoever reaches it can run programs there", advice)
    if file.get("mode", 0) & 0o077:
        yield Finding("warn", f"others can read {file['path']} (mode {file['mode']:04o})", f"chmod 600 {file['path']}")
