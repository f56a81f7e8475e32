"""A driver that tells of steps without Ray, and a look into what W&B was given of them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from cluster.follower import chain_id_of
from cluster.ledger import Ledger
from cluster.runs import EventLog, Run
from cluster.store import Store
from cluster.tracking import Tracker

MARKER = "5ecret" + "a" * 34
METRICS = {
    "clean": {"accuracy": 0.5},
    "robust": [{"epsilon": 0.1, "accuracy": 0.25}, {"epsilon": 0.2, "accuracy": 0.125}],
    "sparse": True,
    "digest": "abc",
}
HISTORY = b'{"epoch": 1, "loss": 2.0}\n{"epoch": 2, "loss": 1.0}\n'


class Driver:
    """What the command line does for tracking, without Ray: publishes steps and tells of them."""

    def __init__(self, folder: Path, run_id: str = "run1") -> None:
        self.store = Store.open(str(folder / "store"))
        self.results = folder / "results"
        self.run = Run.open(self.store, run_id, {"name": "mnist/lottery", "recipe": {"kind": "lottery", "rounds": 3}})
        self.log = EventLog(self.store, run_id, "driver")

    def track(self, mode: str = "offline") -> Tracker:
        return Tracker.start(self.store.url, self.run.id, mode, self.results)

    def ask(self, at: Mapping[str, Any], kind: str = "evaluate") -> str:
        key = hashlib.sha256(json.dumps(at, sort_keys=True).encode() + kind.encode()).hexdigest()
        self.log.write("step", state="started", key=key, kind=kind, at=at)
        return key

    def publish(self, at: Mapping[str, Any], kind: str, metrics: Mapping[str, Any], history: bytes = b"") -> None:
        key = self.ask(at, kind)
        lease = Ledger(self.store).lease(key, f"attempt-{uuid4().hex}")
        if lease is not None:
            manifest = {"task": {"kind": kind}, "inputs": {}, "metrics": metrics}
            Ledger(self.store).publish(lease, {"history.jsonl": history} if history else {}, manifest)
        self.log.write("step", state="found" if lease is None else "published", key=key, kind=kind, at=at)

    def finish(self, *levels: int, replicate: int = 0) -> None:
        for level in levels:
            self.publish({"replicate": replicate, "level": level}, "evaluate", METRICS, HISTORY)


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def offline_runs(results: Path, *chain: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """The records of every offline run, oldest first; only those of some chains if given."""
    ids = [chain_id_of("run1", at) for at in chain] or [""]
    folders = [folder for folder in results.glob("wandb/offline-run-*") if any(run in folder.name for run in ids)]
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    readers = [
        subprocess.Popen([*inspect, str(folder)], stdout=subprocess.PIPE, text=True)
        for folder in sorted(folders, key=lambda folder: folder.stat().st_ctime)
    ]
    return [[json.loads(line) for line in reader.communicate()[0].splitlines()] for reader in readers]


def rows(records: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    history = [record["history"] for record in records if record["type"] == "history"]
    return [
        (row["step"]["num"], {name: value for name, value in row["item"].items() if not name.startswith("_")})
        for row in history
    ]


def exit_code(records: list[dict[str, Any]]) -> int:
    return next(record["exit"].get("exit_code", 0) for record in records if record["type"] == "exit")


def keys(records: list[dict[str, Any]]) -> list[str]:
    return [row["key"] for _, row in rows(records) if "key" in row]


def core_of(tracker: Tracker) -> psutil.Process:
    process = psutil.Process(tracker.pid)
    return until(lambda: [child for child in process.children() if child.name() == "wandb-core"])[0]


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def content(store: Store) -> dict[str, bytes | None]:
    return {path: store.get(path) for path in store.paths("") if "/tracking-" not in path}
