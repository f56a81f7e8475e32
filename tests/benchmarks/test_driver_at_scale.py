"""One driver with very many steps, in simulated time: its memory, its requests of the store, its own CPU time.

The engine, watch, worker and ledger code is the real one; clock, cluster and store are simulated, with the latencies
below. `HEDGEROW_STEPS` sets the number of steps.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from cluster import engine
from cluster.flow import Flow, Handle
from cluster.order import Terms
from tests.cluster.simulation.clocks import Loop
from tests.cluster.simulation.disk import Weather
from tests.cluster.simulation.referee import Label, Referee
from tests.cluster.simulation.simulation import Simulation
from tests.cluster.simulation.work import Work
from tests.cluster.simulation.world import Machine

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(7200)]

STEPS = int(os.environ.get("HEDGEROW_STEPS", "100000"))
S3 = {"get": 0.015, "head": 0.012, "put": 0.030, "create": 0.030, "delete": 0.015}
DISK = dict.fromkeys(S3, 0.0002)
"""Seconds a request."""


class Unjudged(Referee):
    """Keeps nothing of what it sees, so that what grows is the driver."""

    def on_write(self, objects: Mapping[str, bytes], path: str, data: bytes, who: Any) -> None:
        pass

    def on_delete(self, objects: Mapping[str, bytes], path: str) -> None:
        pass

    def on_compute(self, key: str, inputs: Mapping[str, str]) -> None:
        pass

    def on_outcome(self, attempt: str) -> None:
        pass

    def kept_for(self, objects: Mapping[str, bytes], label: Label) -> int:
        return 0

    def on_tell(self, driver: str, state: str, handle: Handle, news: Mapping[str, Any]) -> None:
        if state == "failed":  # nothing should, and a user would start such a driver again for ever
            self.violate(f"{handle.key[:8]} failed: {news['message']}")


@dataclass(frozen=True)
class Fan:
    """Chains side by side, as a grid of seeds and levels is."""

    chains: int
    levels: int
    seconds: float
    """A step's."""

    async def run(self, flow: Flow) -> None:
        await flow.together(*(self._chain(flow, number) for number in range(self.chains)))

    async def _chain(self, flow: Flow, number: int) -> None:
        handle = None
        for level in range(self.levels):
            handle = flow.at(chain=number, level=level).step(
                Work(number * self.levels + level, 1, self.seconds), x=handle
            )
        assert handle is not None
        await handle


class Measured:
    """One run of a workflow: what it took, and how it grew."""

    def __init__(self, workflow: Any, slots: int, latency: dict[str, float]) -> None:
        self.simulation = Simulation(
            1,
            nodes=10,
            slots=slots // 10,
            weather=Weather(usual=latency),
            referee=Unjudged,
            terms=Terms(beat=3.0 if latency is S3 else 1.0),
        )
        self.simulation.collecting = True
        self.published = 0
        self.loop_seconds = 0.0
        self.resident: list[int] = []
        self._gone: dict[str, None] = {}
        driver = self.simulation.start(workflow, Machine("desk"))
        driver.on_event = self._hear
        driver.when_done = self.simulation.world.finish
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Loop, "_step", self._timed(Loop._step))
            self.simulation.run(1e9)
        assert self.simulation.referee.violations == []
        assert driver.done

    def _timed(self, step: Any) -> Any:
        def timed(loop: Loop) -> None:
            began = time.thread_time()
            step(loop)
            self.loop_seconds += time.thread_time() - began

        return timed

    def _hear(self, state: str, handle: Handle) -> None:
        if state != "published":
            return
        self.published += 1
        for upstream in handle.inputs.values():  # read for the last time: the disk's memory is not the driver's
            folder = f"steps/{upstream.key[:2]}/{upstream.key}/"
            for path in ("manifest.json", "lease-0001.json", "0001/value", "0001/progress.state"):
                self.simulation.disk.objects.pop(folder + path, None)
                self.simulation.disk.modified.pop(folder + path, None)
        if self.published % max(1, STEPS // 10) == 0:
            gc.collect()
            self.resident.append(psutil.Process().memory_info().rss)

    def requests(self, process: str) -> dict[str, float]:
        """Per step, by verb: those of the driver (`d`) or of workers (`w`)."""
        counts = self.simulation.disk.counts
        return {
            verb: round(count / self.published, 2) for (who, verb), count in sorted(counts.items()) if who == process
        }

    def tell(self, name: str) -> None:
        virtual = self.simulation.world.now
        sizes = self.resident or [0]
        growth = (sizes[-1] - sizes[0]) / max(1, self.published * (len(sizes) - 1) / 10)
        print(
            f"\n{name}: {self.published} steps in {virtual:.0f} virtual s ({self.published / virtual:.0f} steps/s); "
            f"store: {self.simulation.disk.requests / virtual:.0f} requests/s\n"
            f"  requests a step: driver {self.requests('d')}, worker {self.requests('w')}\n"
            f"  driver's event loop: {1e3 * self.loop_seconds / self.published:.3f} ms CPU a step\n"
            f"  resident: {[size >> 20 for size in self.resident]} MiB, {growth:.0f} bytes a step"
        )


MOST = 4
"""Requests of the driver a step: two look-ups, and looks at its lease every five seconds, in Ray's queue too."""


@pytest.mark.parametrize("latency", [S3, DISK], ids=["s3", "disk"])
def test_chains_of_ten_levels(latency: dict[str, float]) -> None:
    measured = Measured(Fan(STEPS // 10, 10, 1.0), 250, latency)
    measured.tell("chains of 10")
    assert sum(measured.requests("d").values()) < MOST


def test_a_flat_fan() -> None:
    measured = Measured(Fan(STEPS, 1, 1.0), 250, S3)
    measured.tell("flat fan")
    assert sum(measured.requests("d").values()) < MOST


@pytest.mark.parametrize("concurrent", [250, 1000])
def test_traffic_of_many_steps_at_once(monkeypatch: pytest.MonkeyPatch, concurrent: int) -> None:
    monkeypatch.setattr(engine, "IN_FLIGHT", concurrent + 50)
    measured = Measured(Fan(3 * concurrent, 1, 30.0), concurrent, S3)
    measured.tell(f"{concurrent} at once, 30 s each")
