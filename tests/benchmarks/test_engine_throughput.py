"""Steps that one engine sustains on 1, 2 and 4 raylets, beside bare Ray tasks. Run with `-n 0 -m benchmark -s`."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.engine import Engine
from cluster.executor import RayExecutor
from cluster.flow import Flow
from cluster.ledger import Ledger
from cluster.order import Order, Terms
from cluster.session import session
from cluster.step import key_of
from cluster.store import Store
from cluster.worker import run_step
from tests.cluster.clusters import Cluster, cluster
from tests.cluster.toys import Add

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]

STEPS = 300
ROUNDS = 3
RAYLETS = (1, 2, 4)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Any:
    with cluster(1, OMP_NUM_THREADS="1") as made:
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN", made.token)
        yield made


def test_what_the_engine_sustains_on_one_two_and_four_raylets(made: Cluster, tmp_path: Path) -> None:
    """No-op steps that are all asked for at once, and as many bare Ray tasks in turn with them: medians of rounds."""
    rows = []
    with session(made.address) as ray:
        for raylets in RAYLETS:
            while len(made.nodes) < raylets:
                made.add(1)
            wait_for(ray, raylets)
            store = Store.open(str(tmp_path / str(raylets)))
            steps(ray, store, 0, 20)  # starts the workers
            rounds = [(*steps(ray, store, 1000 * (number + 1), STEPS), tasks(ray, STEPS)) for number in range(ROUNDS)]
            took, cpu, bare = (statistics.median(column) for column in zip(*rounds, strict=True))
            rows.append((raylets, STEPS / took, STEPS / bare, bare / took, 1e3 * cpu / STEPS))
    alone = worker_alone(Store.open(str(tmp_path / "alone")), 200)
    print("\nraylets  steps/s  bare tasks/s  ratio  driver's CPU, ms a step")
    for raylets, rate, bare_rate, ratio, cpu in rows:
        print(f"{raylets:7d} {rate:8.0f} {bare_rate:13.0f} {ratio:6.2f} {cpu:8.2f}")
    print(f"a worker's part without Ray: {1e3 * alone:.2f} ms a step")
    assert all(cpu < 10 for *_, cpu in rows)  # CPU time: a busy machine does not change it much


def wait_for(ray: Any, raylets: int) -> None:
    until = time.monotonic() + 60
    while ray.cluster_resources().get("CPU", 0) < raylets:
        assert time.monotonic() < until
        time.sleep(0.2)


def steps(ray: Any, store: Store, first: int, count: int) -> tuple[float, float]:
    """Seconds of the clock and of this process's CPUs for so many steps."""

    async def workflow() -> None:
        flow = Flow(Engine(store, RayExecutor(ray)))
        await flow.together(*(flow.step(Add(first + number)) for number in range(count)))

    began, cpu = time.perf_counter(), time.process_time()
    asyncio.run(workflow())
    return time.perf_counter() - began, time.process_time() - cpu


def tasks(ray: Any, count: int) -> float:
    """Seconds for so many Ray tasks that do nothing."""

    @ray.remote(max_retries=0)
    def bare() -> int:
        return 1

    ray.get([bare.remote() for _ in range(20)])
    began = time.perf_counter()
    ray.get([bare.remote() for _ in range(count)])
    return time.perf_counter() - began


def worker_alone(store: Store, count: int) -> float:
    """Seconds that a worker takes for a step: look, lease, run, publish."""
    began = time.perf_counter()
    for number in range(count):
        task = Add(number)
        key = key_of(task.identity(), {})
        made = run_step(Order(key, task, {}, store.url, "driver", f"driver-{number}", 0, Terms()))
        assert made.state == "published"
    took = time.perf_counter() - began
    assert Ledger(store).find(key) is not None
    return took / count
