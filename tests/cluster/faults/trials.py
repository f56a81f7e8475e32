"""One repetition of a fault: a driver at work, the moment of the fault, what it cost, and whether results are whole."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from cluster.engine import Engine
from cluster.flow import Flow
from cluster.ledger import Lease, Ledger
from cluster.order import Terms
from cluster.store import Store, StoreError
from tests.cluster.clusters import Cluster
from tests.cluster.driving import ThreadExecutor
from tests.cluster.faults.climbs import Work

ROOT = Path(__file__).parents[3]
FIGURES = "HEDGEROW_FAULT_FIGURES"
"""The environment variable that names the file which figures are added to."""
REPETITIONS = int(os.environ.get("HEDGEROW_FAULT_REPETITIONS", "1"))
TERMS = Terms(checkpoint=1.0)
"""As shipped, but for checkpoints so often that a short step has some."""
LIMIT = 150.0

_calm: dict[str, float] = {}
"""Seconds that a work took on nodes of a shape when nothing happened to it."""


@dataclass(frozen=True)
class Figures:
    """What one fault cost."""

    fault: str
    checkpoint: float
    """Seconds between two checkpoints: as much can be lost."""
    lost: float
    """Seconds of links that were computed more than once."""
    recovery: float | None
    """Seconds from the fault until what it struck is at work again; None if it struck nothing."""
    longer: float | None
    """Seconds by which the work took longer than undisturbed; None if that is not known."""
    refused: int
    """Publications of attempts that had been given up."""


class Trial:
    """A driver's run on a store of its own, to be disturbed."""

    def __init__(
        self, fault: str, folder: Path, work: Work, terms: Terms = TERMS, url: str = "", shape: str = ""
    ) -> None:
        folder.mkdir(parents=True)
        self.fault, self.folder, self.work, self.terms = fault, folder, work, terms
        self.url = url or str(folder / "store")
        self.store = Store.open(self.url)
        self.trace = folder / "trace"
        self.drivers: list[Driver] = []
        self.struck = self._repaired = float("inf")
        self.affected: set[int] = set()
        self.shape = shape
        self._manifests: defaultdict[str, set[bytes]] = defaultdict(set)
        self._over = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    def start(self, cluster: Cluster, prefix: Sequence[str] = (), address: str = "") -> Driver:
        """Starts a driver; another one when the first is gone."""
        driver = Driver(self, cluster, prefix, address or cluster.address)
        self.drivers.append(driver)
        return driver

    def lines(self) -> list[dict[str, Any]]:
        """What the climbs noted so far."""
        return _records(self.trace)

    def outcomes(self) -> list[dict[str, Any]]:
        """What became of attempts, as their workers saw it."""
        return _records(self.trace.with_name("trace.outcomes"))

    def at(self) -> dict[int, dict[str, Any]]:
        """The last line of each climb."""
        return {line["step"]: line for line in self.lines()}

    def until(self, condition: Callable[[], Any], seconds: float = LIMIT) -> None:
        """Waits for something to come true while a driver is at work."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.drivers[-1].process.poll() is None, self.drivers[-1].said()
            assert time.monotonic() < deadline, f"{self.drivers[-1].said()}\n{self.lines()[-3:]}"
            time.sleep(0.02)

    def until_at(self, link: int) -> None:
        """Waits until every climb has come so far."""
        self.until(lambda: sum(line["at"] >= link for line in self.at().values()) == self.work.width)

    def strike(self, *nodes: str) -> None:
        """Marks the moment of the fault.

        Args:
            nodes: the names of those that are struck: the climbs on them are affected.
        """
        self.affected = {
            number for number, line in self.at().items() if line["node"] in nodes and line["what"] != "end"
        }
        self.struck = self._repaired = time.monotonic()

    def repaired(self) -> None:
        """Marks the moment from which what was struck can be at work again, if that is not the fault's own."""
        self._repaired = time.monotonic()

    def busy(self) -> str:
        """The name of a node that a climb is on."""
        return str(next(line["node"] for line in self.at().values() if line["what"] != "end"))

    def begun_again(self) -> dict[int, float]:
        """When each climb first began since the fault, or since it was repaired."""
        begun = [line for line in self.lines() if line["t"] > self._repaired and line["what"] == "begin"]
        return {line["step"]: line["t"] for line in reversed(begun)}

    def until_begun_again(self) -> None:
        """Waits until all that was struck is at work again."""
        self.until(lambda: self.affected <= set(self.begun_again()))

    def recovery(self) -> float | None:
        """Seconds until the last of the struck climbs began again; None if none was struck."""
        begun = self.begun_again()
        assert self.affected <= set(begun), f"{self.affected} were affected, {sorted(begun)} went on"
        return round(max(begun[number] for number in self.affected) - self.struck, 2) if self.affected else None

    def resumed(self) -> float:
        """Seconds until the first step began, or was told to be done, since what was lost is there again."""
        ends = [event["t"] for driver in self.drivers for event in driver.states("published")]
        signs = [*self.begun_again().values(), *(end for end in ends if end > self._repaired)]
        return round(float(min(signs)) - self.struck, 2)

    def standstill(self) -> float:
        """The most seconds that nothing new was seen of a step since the fault: the recovery from what only holds up.

        Seen are when it is handed to Ray, its links, and the driver's word that it is published; so the time in which
        a worker starts is part of it, and what a link takes.
        """
        signs = [(line["step"], line["t"]) for line in self.lines()]
        for state in ("started", "published"):
            signs += [(event["number"], event["t"]) for event in self.drivers[-1].states(state)]
        of: defaultdict[int | None, list[float]] = defaultdict(list)
        for number, when in sorted(signs, key=lambda sign: sign[1]):
            of[number].append(when)
        gaps = [later - earlier for times in of.values() for earlier, later in pairwise(times) if later > self.struck]
        return round(max(gaps), 2)

    def finish(self, code: int = 0, seconds: float = LIMIT) -> None:
        """Waits for the driver's end, which must not be held up by anything that is dead."""
        driver = self.drivers[-1]
        assert driver.process.wait(seconds) == code, driver.said()

    def figures(self, recovery: float | None = None, **more: Any) -> Figures:
        """Checks results against those of an undisturbed run, and writes down what the fault cost.

        Args:
            recovery: seconds, where it is not the time until the struck climbs begin again.
            more: to be written down with it.
        """
        self.check()
        return self.measured(recovery, **more)

    def measured(self, recovery: float | None = None, **more: Any) -> Figures:
        """Writes down what the fault cost, as `figures` does."""
        took, usual = self.took(), _calm.get(self.sort)
        longer = None if took is None or usual is None else round(took - usual, 2)
        refused = sum(outcome["state"] == "fenced" for outcome in self.outcomes())
        recovery = self.recovery() if recovery is None else recovery
        made = Figures(self.fault, self.terms.checkpoint, self.lost(), recovery, longer, refused)
        record({**asdict(made), **more})
        return made

    def took(self) -> float | None:
        """Seconds from the first driver's joining to the result; None if there is none."""
        ended = self.drivers[-1].states("result")
        return float(ended[0]["t"]) - self.drivers[0].joined() if ended else None

    def lost(self) -> float:
        """See `Figures`."""
        links = Counter((line["step"], line["at"]) for line in self.lines() if line["what"] == "link")
        return round(sum(times - 1 for times in links.values()) * self.work.pause, 2)

    def check(self) -> None:
        """Compares all results with those of an undisturbed run.

        Raises:
            AssertionError: one differs, or was published more than once.
        """
        self.check_publications(undisturbed(self.work))

    def check_publications(self, expected: Mapping[str, Any]) -> None:
        """Compares what is published, and has been at any moment, with these results by key."""
        self._stop_watching()
        self._look()
        assert results_of(self.store) == expected
        ledger = Ledger(self.store)
        assert {key: len(accepted_of(ledger, key)) for key in expected} == dict.fromkeys(expected, 1)
        assert set(self._manifests) == set(expected)
        assert all(len(found) == 1 for found in self._manifests.values()), "a manifest was replaced by another"

    def close(self) -> None:
        """Ends what is left of the drivers."""
        self._stop_watching()
        for driver in self.drivers:
            driver.kill()

    @property
    def sort(self) -> str:
        """What decides how long it takes undisturbed."""
        return f"{self.shape} {self.work}"

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            with contextlib.suppress(StoreError):  # one that is away for a moment is looked at again
                self._look()

    def _look(self) -> None:
        """Notes every manifest that ever was: a replaced one names another attempt."""
        for path in self.store.paths("steps"):
            if path.endswith("/manifest.json") and (data := self.store.get(path)) is not None:
                self._manifests[path.split("/")[-2]].add(data)

    def _stop_watching(self) -> None:
        self._over.set()
        self._watching.join()


class Driver:
    """The process of one driver, and what it said."""

    def __init__(self, trial: Trial, cluster: Cluster, prefix: Sequence[str], address: str) -> None:
        self.output = trial.folder / f"driver-{len(trial.drivers)}"
        work, terms = json.dumps(asdict(trial.work)), json.dumps(asdict(trial.terms))
        program = [sys.executable, "-m", "tests.cluster.faults.driver"]
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [*prefix, *program, address, trial.url, str(trial.trace), work, terms],
                stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True, env=cluster.environment,
            )  # fmt: skip

    def said(self) -> str:
        """All of it."""
        return self.output.read_text()

    def events(self) -> list[dict[str, Any]]:
        """What it said in its own words; a line of Ray's is none."""
        return [
            json.loads(line) for line in self.said().splitlines(keepends=True) if line[:1] == "{" and line[-1] == "\n"
        ]

    def states(self, state: str) -> list[dict[str, Any]]:
        """Its events of one sort."""
        return [event for event in self.events() if event["state"] == state]

    def joined(self) -> float:
        """When it was in the cluster."""
        return float(self.states("joined")[0]["t"])

    def kill(self) -> None:
        """Ends it at once."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()


@contextlib.contextmanager
def trial(fault: str, folder: Path, work: Work | None = None, **options: Any) -> Iterator[Trial]:
    """A trial, of which nothing is left behind after the `with` block."""
    made = Trial(fault, folder, work or Work(), **options)
    try:
        yield made
    finally:
        made.close()


def calm(nodes: Cluster, folder: Path, work: Work, shape: str = "", **options: Any) -> None:
    """Runs a work undisturbed, once on nodes of a shape: how much longer it takes otherwise is counted from this."""
    with trial("none", folder / "calm", work, shape=shape, **options) as run:
        if run.sort in _calm:
            return
        run.start(nodes)
        run.finish()
        run.check()
        assert run.lost() == 0
        took = run.took()
    assert took is not None
    _calm[run.sort] = took


def results_of(store: Store) -> dict[str, Any]:
    """Metrics and file digests of every published step, with the files read and checked."""
    ledger, results = Ledger(store), {}
    for shelf in store.folders("steps"):
        for key in store.folders(f"steps/{shelf}"):
            published = ledger.find(key)
            if published is not None:
                published.verify()
                digests = {name: entry["sha256"] for name, entry in published.manifest["files"].items()}
                results[key] = {"metrics": dict(published.metrics), "files": digests}
    return results


def leases_of(ledger: Ledger, key: str) -> Iterator[Lease]:
    """All leases that there ever were on a step, the oldest first."""
    fence = 1
    while (lease := ledger.lease_at(key, fence)) is not None:
        yield lease
        fence += 1


def accepted_of(ledger: Ledger, key: str) -> set[str]:
    """The attempts that can say that they published a step: those that set their lease to done, and the manifest's."""
    published = ledger.find(key)
    accepted = {str(published.manifest["attempt"])} if published is not None else set()
    return accepted | {lease.record["attempt"] for lease in leases_of(ledger, key) if lease.record["state"] == "done"}


@cache
def undisturbed(work: Work) -> dict[str, Any]:
    """The results of the same work in this process, where nothing happens to it and nothing waits."""
    calm = Work(work.width, work.end, pause=0.0)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(folder)
        engine = Engine(store, ThreadExecutor())
        asyncio.run(calm.run(Flow(engine), ""))
        return results_of(store)


def _records(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def record(figures: dict[str, Any]) -> None:
    """Prints figures, and adds them to the file that is asked for."""
    sys.stdout.write(json.dumps(figures) + "\n")
    if FIGURES in os.environ:
        with Path(os.environ[FIGURES]).open("a") as file:
            file.write(json.dumps(figures) + "\n")
