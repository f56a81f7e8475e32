"""The shortest of the rows, for the default suite: one cluster, one killed worker, one killed raylet."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil

from tests.cluster.clusters import cluster
from tests.cluster.faults.climbs import Work
from tests.cluster.faults.trials import TERMS, trial

QUICK = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
}
"""Ray's head misses a node sooner than with the shipped settings: the default suite is short."""


def test_a_killed_worker_and_a_killed_raylet_cost_seconds_and_no_result(tmp_path: Path) -> None:
    with cluster(2, 2, **QUICK) as made, trial("worker, then raylet killed", tmp_path / "run", Work(end=50)) as run:
        run.start(made)
        run.until_at(12)
        worker = run.at()[0]["pid"]
        psutil.Process(worker).kill()
        run.until(lambda: run.at()[0]["pid"] != worker and run.at()[0]["at"] > 15)
        victim = made.named(run.busy())
        run.strike(victim.name)
        victim.signal(signal.SIGKILL, "raylet/raylet")
        run.finish()
        figures = run.figures()
    assert figures.lost < 2 * TERMS.checkpoint * (1 + len(run.affected))
    assert figures.recovery is not None
    assert figures.recovery < 30
    assert {event["cause"] for event in run.drivers[0].states("retried")} == {"node"}
