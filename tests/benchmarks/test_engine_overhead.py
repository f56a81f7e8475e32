"""What the engine adds to Ray: per step, on resuming, and in memory. Run with `-n 0 -m benchmark -s`."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.engine import Engine
from cluster.executor import RayExecutor
from cluster.flow import Flow
from cluster.plan import make_plan
from cluster.session import session
from cluster.store import Store
from tests.cluster.toys import Add

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]

SERIAL = 200
RESUMED = 1_000
GRAPH = 10_000


@pytest.fixture(scope="module")
def ray() -> Any:
    with session("local", cpus=2) as ray:
        yield ray


def test_a_no_op_step_costs_little_more_than_a_bare_ray_task(ray: Any, tmp_path: Path) -> None:
    """Median of steps awaited one by one, beside bare Ray tasks in turn with them."""

    @ray.remote
    def bare() -> int:
        return 1

    async def measure() -> tuple[list[float], list[float]]:
        flow = Flow(Engine(Store.open(str(tmp_path)), RayExecutor(ray)))
        steps, tasks = [], []
        for number in range(SERIAL + 20):
            began = time.perf_counter()
            await flow.step(Add(number))
            between = time.perf_counter()
            await bare.remote()
            steps.append(between - began)
            tasks.append(time.perf_counter() - between)
        return steps[20:], tasks[20:]  # the first ones start the workers

    steps, tasks = asyncio.run(measure())
    added = 1e3 * (statistics.median(steps) - statistics.median(tasks))
    print(f"\nstep {1e3 * statistics.median(steps):.2f} ms, bare Ray task {1e3 * statistics.median(tasks):.2f} ms")
    assert added < 15


def test_a_run_of_a_thousand_finished_steps_resumes_at_once(ray: Any, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))

    async def workflow(flow: Flow) -> None:
        await flow.together(*(flow.step(Add(number)) for number in range(RESUMED)))

    began = time.perf_counter()
    asyncio.run(workflow(Flow(Engine(store, RayExecutor(ray)))))
    first = time.perf_counter() - began
    began = time.perf_counter()
    plan = asyncio.run(make_plan(store, workflow))
    planned = time.perf_counter() - began
    assert len(plan.stored) == RESUMED
    began = time.perf_counter()
    asyncio.run(workflow(Flow(Engine(store, RayExecutor(ray)))))
    again = time.perf_counter() - began
    print(f"\n{RESUMED} steps: computed in {first:.2f} s, planned in {planned:.2f} s, found again in {again:.2f} s")
    assert planned + again < 2


def test_the_drivers_memory_does_not_grow_with_the_graph(ray: Any, tmp_path: Path) -> None:
    """Chains of ten steps, a hundred chains at a time, as a long search would ask for them."""
    store = Store.open(str(tmp_path))
    process = psutil.Process()
    sizes: list[tuple[int, float]] = []

    async def chain(flow: Flow, first: int) -> None:
        handle = flow.step(Add(first))
        for number in range(1, 10):
            handle = flow.step(Add(first + number), x=handle)
        await handle

    async def graph() -> None:
        flow = Flow(Engine(store, RayExecutor(ray)))
        for batch in range(0, GRAPH, 1000):
            await flow.together(*(chain(flow, batch + 10 * index) for index in range(100)))
            sizes.append((batch + 1000, process.memory_info().rss / 2**20))

    asyncio.run(graph())
    print("\n" + ", ".join(f"{steps}: {size:.0f} MiB" for steps, size in sizes))
    assert sizes[-1][1] < 1.1 * sizes[1][1]
