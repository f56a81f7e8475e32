"""The rounds of COLT with two parts: two workers beside one, in turn. Run with `-n 0 -m benchmark -s`."""

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
from cluster.session import session
from cluster.store import Store
from workflows.colt import Colt, initial_weights
from workflows.measured import seeded

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]

PAIRS = 3
COLT: dict[str, Any] = {
    "train": {
        "data": {"kind": "mnist-mini", "validation": 1000},
        "architecture": "lenet-300-100",
        "objective": {"kind": "pgd", "epsilon": 0.1, "steps": 3},
        "optimizer": {"kind": "adam", "learning_rate": 0.0012},
        "epochs": 10,
        "batch_size": 60,
    },
    "prune": {"fraction": 0.3, "output_layer": "exclude"},
    "sparsity": 0.6,
}


def test_two_workers_take_at_most_six_tenths_of_the_time_of_one(tmp_path: Path) -> None:
    seeds = iter(range(0, 1000, 10))

    def seconds(ray: Any) -> float:
        """Time of fresh rounds: seeds never used before, so that nothing is found."""
        colt = Colt.model_validate({**COLT, "train": {**COLT["train"], "seed": next(seeds)}})
        engine = Engine(Store.open(str(tmp_path)), RayExecutor(ray))

        async def search() -> None:
            flow, train = Flow(engine), seeded(colt.train, 0)
            await colt.rounds(flow, "iid", train, flow.step(initial_weights(train)))

        began = time.perf_counter()
        asyncio.run(search())
        return time.perf_counter() - began

    def with_workers(count: int) -> float:
        with session("local", cpus=count) as ray:
            seconds(ray)  # every worker has imported torch and prepared the data
            return seconds(ray)

    pairs = [(with_workers(1), with_workers(2)) for _ in range(PAIRS)]
    ratios = [two / one for one, two in pairs]
    shown = ", ".join(f"one {one:.1f} s, two {two:.1f} s" for one, two in pairs)
    print(f"\n{shown}: two workers take {statistics.median(ratios):.2f} of the time of one")
    assert statistics.median(ratios) <= 0.6
