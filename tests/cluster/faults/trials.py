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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from cluster.engine import Engine
from cluster.flow import Flow
from cluster.ledger import Ledger
from cluster.store import Store
from cluster.worker import Terms
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

_undisturbed: dict[str, float] = {}
"""Seconds that a work took on nodes of a shape when nothing happened to it."""


@dataclass(frozen=True)
class Figures:
    """What one fault cost."""

    fault: str
    lost: float
    """Seconds of links that were computed more than once."""
    recovery: float | None
    """Seconds from the fault to the first sign of the last affected step that went on; None if none was affected."""
    longer: float
    """Seconds by which the work took longer than undisturbed."""
    published_twice: int
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
        self.trace = folder / "trace"
        self.drivers: list[Driver] = []
        self.struck = float("inf")
        self.affected: set[int] = set()
        self.shape = shape
        self._inodes: dict[str, set[int]] = {}
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
        self.struck = time.monotonic()

    def busy(self) -> str:
        """The name of a node that a climb is on."""
        return str(next(line["node"] for line in self.at().values() if line["what"] != "end"))

    def recovery(self) -> float | None:
        """See `Figures`."""
        begun = [line for line in self.lines() if line["t"] > self.struck and line["what"] == "begin"]
        first = {line["step"]: line["t"] - self.struck for line in reversed(begun)}
        assert self.affected <= set(first), f"{self.affected} were affected, {sorted(first)} went on"
        return round(max(first[number] for number in self.affected), 2) if self.affected else None

    def finish(self, code: int = 0, seconds: float = LIMIT) -> None:
        """Waits for the driver's end, which must not be held up by anything that is dead."""
        driver = self.drivers[-1]
        assert driver.process.wait(seconds) == code, driver.said()

    def figures(self, **more: Any) -> Figures:
        """Checks results against those of an undisturbed run, and writes down what the fault cost."""
        self._over.set()
        self._watching.join()
        twice = self.check()
        ended = next(event["t"] for event in self.drivers[-1].events() if event["state"] == "result")
        took = ended - self.drivers[0].joined()
        calm = _undisturbed.get(self._sort())
        refused = sum(outcome["state"] == "fenced" for outcome in self.outcomes())
        made = Figures(self.fault, self.lost(), self.recovery(), round(took - calm, 2) if calm else 0.0, twice, refused)
        record({**asdict(made), **more})
        return made

    def calm(self) -> None:
        """Notes how long the work takes undisturbed."""
        self.finish()
        events = self.drivers[-1].events()
        ended = next(event["t"] for event in events if event["state"] == "result")
        _undisturbed[self._sort()] = ended - self.drivers[0].joined()

    def is_known(self) -> bool:
        """Whether it is known how long the work takes undisturbed."""
        return self._sort() in _undisturbed

    def lost(self) -> float:
        """See `Figures`."""
        links = Counter((line["step"], line["at"]) for line in self.lines() if line["what"] == "link")
        return round(sum(times - 1 for times in links.values()) * self.work.pause, 2)

    def check(self) -> int:
        """Compares all results with those of an undisturbed run.

        Returns:
            the number of steps that were published more than once.
        """
        store = Store.open(self.url)
        assert results_of(store) == undisturbed(self.work)
        twice = 0
        for key in results_of(store):
            accepted = accepted_of(Ledger(store), key)
            twice += len(accepted) > 1 or len(self._inodes.get(key, ())) > 1
        assert twice == 0
        return twice

    def close(self) -> None:
        """Ends what is left of the drivers."""
        self._over.set()
        for driver in self.drivers:
            driver.kill()

    def _sort(self) -> str:
        return f"{self.shape} {self.work}"

    def _watch(self) -> None:
        """Notes every manifest that ever was: a replaced one is another file."""
        while not self._over.wait(0.1):
            for path in Path(self.url).glob("steps/*/*/manifest.json"):
                with contextlib.suppress(FileNotFoundError):
                    self._inodes.setdefault(path.parent.name, set()).add(path.stat().st_ino)


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


def accepted_of(ledger: Ledger, key: str) -> set[str]:
    """The attempts that can say that they published a step: those that set their lease to done, and the manifest's."""
    published = ledger.find(key)
    accepted = {str(published.manifest["attempt"])} if published is not None else set()
    fence = 1
    while (lease := ledger.lease_at(key, fence)) is not None:
        if lease.record["state"] == "done":
            accepted.add(lease.record["attempt"])
        fence += 1
    return accepted


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
