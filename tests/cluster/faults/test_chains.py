"""Real work under faults: a small adversarially trained chain, by the command line, on a cluster."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.ledger import Ledger
from cluster.order import Terms
from cluster.store import Store
from tests.cluster.clusters import Cluster, cluster, drain
from tests.cluster.faults.trials import REPETITIONS, accepted_of, record
from tests.workflows.chains import command, results_of, run_chain

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
LONGER = ["--set", "train.epochs=120", "--set", "levels=1", "--set", "controls=[]"]
"""Steps of more seconds than it takes to announce that a node will go, and until the driver looks for it."""


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of the chain when nothing happens to it."""
    folder = tmp_path_factory.mktemp("calm")
    ended = run_chain(folder, *LONGER)
    assert ended.returncode == 0, ended.stderr
    return results_of(folder)


@pytest.fixture(scope="module")
def made() -> Iterator[Cluster]:
    with cluster() as shared:
        yield shared


@contextmanager
def training(made: Cluster, folder: Path) -> Iterator[tuple[subprocess.Popen[str], str, dict[str, Any]]]:
    """The chain at work: its driver, the key of a training step with some checkpoints, and the record of its lease."""
    folder.mkdir(parents=True)
    while len(made.nodes) < 2:
        made.add(1)
    driver = subprocess.Popen(
        command(folder, *LONGER, "--address", made.address, "--rejoin", "0"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, env=made.environment,
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while not (found := _saved(folder)):
            assert driver.poll() is None, driver.stdout and driver.stdout.read()
            assert time.monotonic() < until
            time.sleep(0.02)
        yield driver, *found
    finally:
        driver.kill()
        driver.wait()


def _saved(folder: Path) -> tuple[str, dict[str, Any]] | None:
    for path in (folder / "store" / "steps").glob("*/*/lease-0001.json"):
        lease = json.loads(path.read_text())
        if lease["state"] == "held" and lease["task"]["kind"] == "train" and lease.get("saves", 0) >= 3:
            return path.parent.name, lease
    return None


def finish(driver: subprocess.Popen[str], folder: Path, key: str, struck: float) -> float:
    """Waits for the end of the chain.

    Returns:
        seconds from the fault to the lease of the struck step's next attempt.
    """
    recovery = 0.0
    successor = folder / "store" / "steps" / key[:2] / key / "lease-0002.json"
    while driver.poll() is None:
        if not recovery and successor.exists():
            recovery = time.monotonic() - struck
        assert time.monotonic() - struck < 200
        time.sleep(0.02)
    assert driver.returncode == 0, driver.stdout and driver.stdout.read()
    return recovery


def check(folder: Path, calm: dict[str, Any], fault: str, recovery: float) -> None:
    """Compares results, and writes down what the fault cost."""
    assert results_of(folder) == calm
    ledger = Ledger(Store.open(str(folder / "store")))
    assert all(len(accepted_of(ledger, key)) == 1 for key in calm)
    assert recovery > 0, "nobody took the step over"
    record({"fault": fault, "checkpoint": Terms().checkpoint, "recovery": round(recovery, 2)})


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_a_killed_worker_leaves_a_trained_chain_as_it_was(
    made: Cluster, tmp_path: Path, calm: dict[str, Any], repetition: int
) -> None:
    folder = tmp_path / "chain"
    with training(made, folder) as (driver, key, lease):
        struck = time.monotonic()
        psutil.Process(lease["owner"]["pid"]).kill()
        recovery = finish(driver, folder, key, struck)
    check(folder, calm, "worker killed (PGD training)", recovery)


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_a_drained_node_leaves_a_trained_chain_as_it_was(
    made: Cluster, tmp_path: Path, calm: dict[str, Any], repetition: int
) -> None:
    folder = tmp_path / "chain"
    with training(made, folder) as (driver, key, lease):
        worker = psutil.Process(lease["owner"]["pid"])
        victim = next(node for node in made.nodes if worker in node.members())
        struck = time.monotonic()
        drain(made, lease["node"], 20.0)
        recovery = finish(driver, folder, key, struck)
        victim.signal(signal.SIGCONT)
        victim.kill()
        made.nodes.remove(victim)
    first = json.loads((folder / "store" / "steps" / key[:2] / key / "lease-0001.json").read_text())
    assert first["state"] == "released", "it left by itself"
    check(folder, calm, "node drained (PGD training)", recovery)
