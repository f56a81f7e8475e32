"""One step in several processes, through Ray Train: placed, connected, killed, frozen, stopped and drained."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pandas")  # what Ray Train needs: `ray[train]`
pytest.importorskip("pyarrow")
from torch import distributed

from cluster.engine import Stopped
from cluster.executor import RayExecutor
from cluster.failures import StepFailed
from cluster.flow import Flow
from cluster.group import Ended, _follow, _lead, _verdict
from cluster.ledger import Lease, Ledger, Published, folder_of
from cluster.order import Order, Outcome, Terms
from cluster.store import Store
from tests.cluster.clusters import cluster, drain
from tests.cluster.driving import Driver
from tests.cluster.grouping import slow
from tests.cluster.toys import Add
from tests.tasks import teams
from tests.tasks.teams import Pair, Troubled
from tests.tasks.training_toys import Tiny, toy

TERMS = Terms(beat=0.2, ttl=15.0, checkpoint=0.2, farewell=30.0)
LIMIT = 240.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two processes that know nothing of Ray."""
    made = Pair(tmp_path_factory.mktemp("pair"))
    yield made
    made.close()


def driver(store: Store, ray: Any) -> Driver:
    return Driver(store, RayExecutor(ray), TERMS)


def obtained(made: Driver, task: Any) -> Published:
    return made.run(lambda flow: flow.step(task).published(), LIMIT)  # type: ignore[no-any-return]


def fences(store: Store, key: str) -> int:
    return sum("lease-" in path for path in store.paths(folder_of(key)))


def require_undisturbed(found: Published, pair: Pair, task: Any) -> None:
    """The very bytes of a training that nothing happened to."""
    straight = pair(teams.train, task)
    assert found.metrics == straight.metrics
    assert {name: found.read(name) for name in found.manifest["files"]} == straight.files


def test_a_training_in_two_processes_is_one_step_with_the_bytes_of_plain_processes(
    disk: Store, ray: Any, pair: Pair
) -> None:
    task = toy(architecture=Tiny(dropout=0.5, norm=True), world_size=2)
    made = driver(disk, ray)
    found = obtained(made, task)
    require_undisturbed(found, pair, task)
    assert [made.count(state) for state in ("started", "published", "retried", "failed")] == [1, 1, 0, 0]
    assert fences(disk, found.key) == 1
    lease = Ledger(disk).lease_at(found.key, 1)
    assert lease is not None
    assert lease.record["state"] == "done"
    assert obtained(driver(disk, ray), task).manifest == found.manifest, "the second driver finds it"


def test_nobody_waits_for_processes_whose_first_one_has_nothing_to_compute(disk: Store, pair: Pair) -> None:
    """Another driver holds its lease, or has published it: the other processes learn it at once, not in a day."""
    key = "ab" * 32
    order = Order(key, Add(5), {}, disk.url, "d", "d-1", 0, TERMS)
    held = Ledger(disk).lease(key, "another")
    assert held is not None
    assert [answer.state for answer in pair.all(part_of, order)] == ["busy", "published"]
    Ledger(disk).publish(held, {"sum.txt": b"5"}, {"metrics": {"sum": 5}})
    assert [answer.state for answer in pair.all(part_of, order)] == ["published", "published"]


def part_of(order: Order) -> Outcome:
    """What one of two processes does for an order."""
    first = distributed.get_rank() == 0
    return _lead(order, "here", "", []) if first else _follow(order)


def test_who_is_to_blame_for_the_end_of_a_group() -> None:
    lost = Ended(Outcome("failed", "node", "another process of this training is gone"))
    wrong, saved = Ended(Outcome("failed", "user", "no good")), Ended(Outcome("stopped", "preempted"))
    fenced = Ended(Outcome("fenced"))
    assert _verdict({0: lost, 1: wrong}).message == "no good"
    assert _verdict({0: wrong, 1: lost}).message == "no good"
    assert _verdict({0: fenced, 1: saved}).state == "fenced"
    assert _verdict({0: saved, 1: saved}).state == "stopped"
    assert _verdict({0: saved, 1: lost}).state == "stopped"
    assert _verdict({1: saved, 0: lost}).cause == "node"
    assert _verdict({1: MemoryError("no room")}).cause == "oom"


@pytest.mark.faults
@pytest.mark.parametrize(
    ("rank", "number", "cause"),
    [(1, signal.SIGKILL, "node"), (0, signal.SIGKILL, "node"), (0, signal.SIGSTOP, "partition"),
     (1, signal.SIGSTOP, "partition")],
    ids=["second-killed", "first-killed", "first-frozen", "second-frozen"],
)  # fmt: skip
def test_trouble_of_one_process_ends_the_attempt_and_changes_no_byte(
    disk: Store, ray: Any, pair: Pair, tmp_path: Path, rank: int, number: int, cause: str
) -> None:
    trouble = Troubled(at=15, flag=str(tmp_path / "flag"), rank=rank, number=number, pause=0.05)
    task = toy(objective=trouble, world_size=2)
    made = driver(disk, ray)
    found = obtained(made, task)
    assert [news["cause"] for news in made.news("retried")] == [cause]
    assert fences(disk, found.key) == 2
    assert made.count("published") == 1
    require_undisturbed(found, pair, task)


@pytest.mark.faults
def test_an_error_in_one_process_is_told_once_with_its_log(disk: Store, ray: Any, tmp_path: Path) -> None:
    task = toy(objective=Troubled(at=3, flag=str(tmp_path / "flag"), number=0), world_size=2)
    made = driver(disk, ray)
    with pytest.raises(StepFailed) as failure:
        obtained(made, task)
    assert (failure.value.cause, failure.value.message) == ("user", "no good")
    assert b"ValueError: no good" in (disk.get(failure.value.log) or b"")
    assert made.count("started") == 1
    assert obtained(driver(disk, ray), toy(world_size=2)).metrics["step"] == 18, "the processors are free again"


@pytest.mark.faults
def test_a_driver_that_stops_takes_all_processes_along_at_one_step(
    disk: Store, ray: Any, pair: Pair, tmp_path: Path
) -> None:
    task = toy(objective=Troubled(at=999, flag=str(tmp_path / "flag"), pause=0.05), epochs=40, world_size=2)
    made = driver(disk, ray)

    async def stop(flow: Flow) -> str:
        step = flow.step(task)
        while True:
            await asyncio.sleep(0.2)
            lease = Ledger(disk).lease_at(step.key, 1)
            if lease is not None and lease.record.get("saves", 0) > 3:
                break
        await made.engine.stop()
        with pytest.raises(Stopped):
            await step
        return step.key

    key = made.run(stop, LIMIT)
    lease = Ledger(disk).lease_at(key, 1)
    assert lease is not None
    assert lease.record["state"] == "released"
    short = task.model_copy(update={"epochs": 40})
    require_undisturbed(obtained(driver(disk, ray), short), pair, short)
    assert fences(disk, key) == 2


@pytest.mark.faults
def test_a_drained_node_of_any_process_moves_the_whole_group(disk: Store, pair: Pair, tmp_path: Path) -> None:
    """Two nodes of three hold a process each; one of them, not the first's, is announced to be gone."""
    with cluster(1, 1, 1, PYTHONPATH=os.pathsep.join(sys.path)) as nodes:
        program = [sys.executable, "-m", "tests.cluster.grouping", disk.url, nodes.address, str(tmp_path / "flag")]
        with subprocess.Popen(program, env=nodes.environment, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            key = json.loads(running.stdout.readline())["key"]
            first = until_saved(disk, key)
            other = first.record["beside"][0]
            drain(nodes, other, 120)
            told = [json.loads(line) for line in running.stdout]
    assert [(event["state"], event["cause"]) for event in told if event["state"] == "retried"] == [
        ("retried", "preempted")
    ]
    assert told[-1]["state"] == "published"
    second = Ledger(disk).lease_at(key, 2)
    assert second is not None
    assert other not in {second.record["node"], *second.record["beside"]}
    found = Ledger(disk).find(key)
    assert found is not None
    require_undisturbed(found, pair, slow(str(tmp_path / "flag")))


def until_saved(store: Store, key: str) -> Lease:
    until = time.monotonic() + LIMIT
    while True:
        lease = Ledger(store).lease_at(key, 1)
        if lease is not None and lease.record.get("saves", 0) > 1:
            return lease
        assert time.monotonic() < until
        time.sleep(0.2)
