"""Steps that go on from what a shorter step left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.failures import StepFailed
from cluster.flow import Flow
from cluster.ledger import Ledger, Published, folder_of
from cluster.order import Order
from cluster.step import key_of
from cluster.store import Store
from cluster.worker import run_step
from tests.cluster.driving import SHORT, Driver, ThreadExecutor
from tests.cluster.toys import Made, Toy, Wait, note


@dataclass
class Climb(Toy):
    """Counts to `end`, noting each number in a file outside, and leaves where it is."""

    end: int
    trace: str
    leaves: str = "progress.state"
    height: int | None = None

    def run(self, context: Any, **inputs: Any) -> Made:
        for number in range(int(context.saved() or 0), self.end):
            note(self.trace, str(number))
        if self.height is not None and self.end > self.height:
            raise ValueError("too high")
        return Made({"count": self.end}, {self.leaves: str(self.end).encode()})


def climbed(store: Store, task: Climb, **changes: Any) -> Published:
    key = key_of(task.identity(), {})
    outcome = run_step(replace(Order(key, task, {}, store.url, "driver", f"d-{task.end}", 0, SHORT), **changes))
    assert outcome.state == "published", outcome
    published = Ledger(store).find(key)
    assert published is not None
    return published


def noted(trace: Path) -> list[int]:
    found = [int(line) for line in trace.read_text().splitlines()]
    trace.unlink()
    return found


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace"


def test_a_worker_goes_on_from_the_prefix(disk: Store, trace: Path) -> None:
    prefix = climbed(disk, Climb(3, str(trace)))
    assert noted(trace) == [0, 1, 2]
    whole = climbed(disk, Climb(5, str(trace)), prefix=prefix.key)
    assert noted(trace) == [3, 4]
    assert whole.metrics == {"count": 5}
    assert whole.manifest["inputs"] == {}


def tear(path: str, store: Store) -> None:
    store.put(path, b"torn")


DAMAGE: dict[str, Callable[[Published, Store], None]] = {
    "torn": lambda prefix, store: tear(prefix.manifest["files"]["progress.state"]["path"], store),
    "missing": lambda prefix, store: store.delete([prefix.manifest["files"]["progress.state"]["path"]]),
    "torn-manifest": lambda prefix, store: tear(f"{folder_of(prefix.key)}/manifest.json", store),
    "never-published": lambda prefix, store: store.delete([f"{folder_of(prefix.key)}/manifest.json"]),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_prefix_that_is_damaged_or_gone_is_not_missed(disk: Store, trace: Path, how: str) -> None:
    prefix = climbed(disk, Climb(3, str(trace)))
    noted(trace)
    DAMAGE[how](prefix, disk)
    whole = climbed(disk, Climb(5, str(trace)), prefix=prefix.key)
    assert noted(trace) == [0, 1, 2, 3, 4]
    assert (whole.metrics, whole.read("progress.state")) == ({"count": 5}, b"5")


def test_a_prefix_without_a_checkpoint_is_none(disk: Store, trace: Path) -> None:
    prefix = climbed(disk, Climb(3, str(trace), leaves="other"))
    noted(trace)
    climbed(disk, Climb(5, str(trace)), prefix=prefix.key)
    assert noted(trace) == [0, 1, 2, 3, 4]


def test_an_attempt_s_own_checkpoint_comes_first(disk: Store, trace: Path) -> None:
    prefix = climbed(disk, Climb(3, str(trace)))
    noted(trace)
    task = Climb(5, str(trace))
    ledger = Ledger(disk)
    lease = ledger.lease(key_of(task.identity(), {}), "earlier")
    assert lease is not None
    ledger.save_checkpoint(lease, b"4")
    climbed(disk, task, over=lease.fence, prefix=prefix.key)
    assert noted(trace) == [4]


def shorter(task: Any) -> Any:
    return replace(task, end=3) if isinstance(task, Climb) and task.end > 3 else None


def test_the_engine_hands_on_a_prefix_that_is_finished(disk: Store, trace: Path) -> None:
    executor = ThreadExecutor()

    async def run(flow: Flow) -> Any:
        flow = flow.continuing(shorter)
        short = flow.step(Climb(3, str(trace)))
        await short
        await flow.step(Climb(5, str(trace)))
        return short.key

    key = Driver(disk, executor).run(run)
    assert [order.prefix for order in executor.orders] == [None, key]
    assert noted(trace) == [0, 1, 2, 3, 4]


def test_the_engine_waits_for_no_prefix_and_takes_none_that_failed(disk: Store, trace: Path, tmp_path: Path) -> None:
    executor = ThreadExecutor()
    flag = tmp_path / "flag"

    async def run(flow: Flow) -> None:
        failing = flow.step(Climb(3, str(trace), height=2))
        with pytest.raises(StepFailed, match="too high"):
            await failing
        await flow.continuing(lambda task: failing.task).step(Climb(5, str(trace)))
        unfinished = flow.step(Wait(str(flag)))
        await flow.continuing(lambda task: unfinished.task).step(Climb(6, str(trace)))
        flag.touch()
        await unfinished

    Driver(disk, executor).run(run)
    assert [order.prefix for order in executor.orders] == [None, None, None, None]


def test_a_prefix_is_no_part_of_the_name_and_of_the_result(disk: Store, trace: Path, tmp_path: Path) -> None:
    alone = Store.open(str(tmp_path / "alone"))
    whole = climbed(alone, Climb(5, str(trace)))
    prefix = climbed(disk, Climb(3, str(trace)))
    going_on = climbed(disk, Climb(5, str(trace)), prefix=prefix.key)
    for name in ("key", "task", "inputs", "metrics"):
        assert going_on.manifest[name] == whole.manifest[name]
    assert going_on.manifest["files"]["progress.state"]["sha256"] == whole.manifest["files"]["progress.state"]["sha256"]
