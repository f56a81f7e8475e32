"""Two replicates on two cores beside one replicate on the same session. Run with `-n 0 -m benchmark -s`."""

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
from workflows.imp import IMP

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]

ROUNDS = 3
CHAIN: dict[str, Any] = {
    "train": {
        "data": {"kind": "mnist-mini", "validation": 1000},
        "architecture": "lenet-300-100",
        "objective": {"kind": "pgd", "epsilon": 0.1, "steps": 3},
        "optimizer": {"kind": "adam", "learning_rate": 0.0012},
        "epochs": 5,
        "batch_size": 60,
    },
    "prune": {"fraction": 0.4, "output_layer": "half"},
    "levels": 2,
    "controls": [],
}


def test_two_replicates_on_two_cores_have_nearly_twice_the_throughput_of_one(tmp_path: Path) -> None:
    seeds = iter(range(0, 1000, 10))

    def seconds(ray: Any, replicates: int) -> float:
        """Time of fresh chains: seeds never used before, so that nothing is found."""
        chains = IMP.model_validate(
            {**CHAIN, "replicates": replicates, "train": {**CHAIN["train"], "seed": next(seeds)}}
        )
        engine = Engine(Store.open(str(tmp_path)), RayExecutor(ray))
        began = time.perf_counter()
        asyncio.run(chains.run(Flow(engine)))
        return time.perf_counter() - began

    with session("local", cpus=2) as ray:
        seconds(ray, 2)  # both workers have imported torch and prepared the data
        pairs = [(seconds(ray, 1), seconds(ray, 2)) for _ in range(ROUNDS)]
    gains = [2 * one / two for one, two in pairs]
    shown = ", ".join(f"one {one:.1f} s, two {two:.1f} s" for one, two in pairs)
    print(f"\n{shown}: throughput {statistics.median(gains):.2f} times that of one")
    assert statistics.median(gains) >= 1.7
