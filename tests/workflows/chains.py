"""A small adversarially trained chain, run by real processes that can be killed, and its results to compare."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import psutil

from cluster.ledger import Ledger
from cluster.runs import all_runs, finished_steps, named_steps
from cluster.store import Store
from tests.workflows.conftest import drive
from workflows.command.recipe import load_recipe

RECIPE = """
kind: imp
train:
  data: {kind: mnist-mini, validation: 200, subset: 1500}
  architecture: lenet-300-100
  objective: {kind: pgd, epsilon: 0.1, steps: 2}
  optimizer: {kind: sgd, learning_rate: 0.05, momentum: 0.9}
  schedule: cosine
  epochs: 4
  batch_size: 50
prune: {fraction: 0.5}
levels: 2
rewind_step: 7
controls: [shuffled]
attacks: [{kind: pgd, steps: 5}]
epsilons: [0.1]
examples: 100
"""


def recipe_in(folder: Path) -> Path:
    """The recipe as a file: the one of this page, unless a test has put another there."""
    path = folder / "chain.yaml"
    if not path.exists():
        path.write_text(RECIPE)
    return path


def command(folder: Path, *extra: str) -> list[str]:
    """The command line that runs the chain on the store in a folder."""
    recipe = recipe_in(folder)
    common = ["--store", str(folder / "store"), "--out", str(folder / "out"), "--wandb", "disabled"]
    return [sys.executable, "-m", "workflows.command.cli", "run", str(recipe), *common, "--checkpoint", "0.3", *extra]


def run_chain(folder: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    """Runs it to its end."""
    return subprocess.run(command(folder, *extra), capture_output=True, text=True, timeout=250, cwd=folder)


@contextmanager
def running_chain(folder: Path, *extra: str) -> Iterator[subprocess.Popen[str]]:
    """Starts it, and leaves nothing of it behind."""
    process = subprocess.Popen(
        command(folder, *extra),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, start_new_session=True,
    )  # fmt: skip
    family = Family(process.pid)
    try:
        yield process
    finally:
        family.look()
        for member in family.members:
            _kill(member)
        process.communicate()


class Family:
    """A driver and every process that it started, remembered after it is gone."""

    def __init__(self, pid: int) -> None:
        self.driver = psutil.Process(pid)
        self.members: set[psutil.Process] = {self.driver}

    def look(self) -> None:
        """Notes the processes that are there now."""
        with suppress(psutil.NoSuchProcess):
            self.members |= set(self.driver.children(recursive=True))

    def workers(self) -> list[psutil.Process]:
        """The Ray workers that are running a step."""
        self.look()
        return [member for member in self.members if _title(member).startswith(("ray::train", "ray::evaluate"))]


def kill_one(family: Family, victim: str, random: Random) -> str:
    """Kills a worker, the driver, or everything; says what."""
    if victim == "worker":
        workers = sorted(family.workers(), key=lambda worker: worker.pid)
        if not workers:
            return ""
        _kill(random.choice(workers))
    elif victim == "driver":
        _kill(family.driver)
    else:
        family.look()
        for member in family.members:
            _kill(member)
    return victim


def finish_under_fire(folder: Path, seed: int, kills: int = 3) -> list[str]:
    """Runs the chain with seeded kills until it ends; says which ones struck."""
    random = Random(seed)
    struck: list[str] = []
    for _ in range(kills + 3):
        with running_chain(folder) as process:
            family = Family(process.pid)
            while process.poll() is None:
                wait_until = time.monotonic() + random.uniform(0.2, 2.5)
                while process.poll() is None and time.monotonic() < wait_until:
                    time.sleep(0.02)
                    family.look()
                if len(struck) < kills and process.poll() is None and family.workers():
                    victim = kill_one(family, random.choice(["worker", "worker", "driver", "session"]), random)
                    struck += [victim] if victim else []
            if process.returncode == 0:
                return struck
            assert process.returncode in (-signal.SIGKILL, 3), process.stdout.read() if process.stdout else ""
    raise AssertionError(f"not finished after {struck}")


def undisturbed_in(folder: Path) -> dict[str, Any]:
    """The results of a run without Ray, in this process, that nobody disturbed; its report lies beside the store."""
    recipe = load_recipe(str(recipe_in(folder)))
    store = Store.open(str(folder / "store"))
    run, code = drive(store, recipe, folder / "out")
    assert code == 0, run
    assert set(attempts_of(folder).values()) == {1}
    recipe.workflow.report(finished_steps(store, run.id)).write(folder / "out" / run.id)
    return results_of(folder)


def results_of(folder: Path) -> dict[str, Any]:
    """Metrics and file digests of every step of every run in the store, with the files checked."""
    store = Store.open(str(folder / "store"))
    ledger = Ledger(store)
    results = {}
    for run in all_runs(store):
        for key in named_steps(store, run.id):
            published = ledger.find(key)
            assert published is not None, f"step {key} of run {run.id} was never published"
            published.verify()
            files = {name: entry["sha256"] for name, entry in published.manifest["files"].items()}
            results[key] = {"metrics": published.metrics, "files": files}
    return results


def attempts_of(folder: Path) -> dict[str, int]:
    """How many leases were taken on each step."""
    ledger = Ledger(Store.open(str(folder / "store")))
    found = {}
    for path in (folder / "store" / "steps").glob("*/*"):
        lease = ledger.current_lease(path.name)
        found[path.name] = lease.fence if lease else 0
    return found


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _kill(process: psutil.Process) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
