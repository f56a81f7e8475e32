"""What the engine does about results that are not as they were published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cluster.engine
from cluster.failures import BUDGET, StepFailed
from cluster.flow import Flow, Handle
from cluster.ledger import Damaged, Ledger, folder_of
from cluster.order import Order, Outcome
from cluster.store import Store, StoreError
from tests.cluster.driving import SHORT, Driver, ThreadExecutor
from tests.cluster.toys import Add

QUICK = replace(SHORT, ttl=0.6)


def driver(store: Store, **options: Any) -> Driver:
    return Driver(store, ThreadExecutor(), **{"terms": QUICK, **options})


def lines(trace: Path) -> list[str]:
    return trace.read_text().splitlines() if trace.exists() else []


def file_of(store: Store, handle: Handle, name: str = "sum.txt") -> str:
    found = Ledger(store).find(handle.key)
    assert found is not None
    return str(found.manifest["files"][name]["path"])


def test_a_damaged_input_is_set_aside_and_recomputed_once_for_all_its_readers(disk: Store, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    base = Add(5, str(trace))
    first = driver(disk)
    first.run(lambda flow: flow.step(base).published())
    disk.put(file_of(disk, first.events[0][1]), b"6")
    second = driver(disk)

    async def run(flow: Flow) -> list[int]:
        readers = [flow.step(Add(number, str(trace)), x=flow.step(base)) for number in range(100, 106)]
        return [(await reader)["sum"] for reader in readers]

    assert second.run(run) == [105 + number for number in range(6)]
    assert lines(trace).count("add 5") == 2
    assert second.count("recomputed") == 1
    told = second.news("recomputed")[0]
    assert "sum.txt is damaged" in told["message"]
    assert disk.get(f"{told['aside']}/sum.txt") == b"6"


def test_a_store_that_is_away_for_a_moment_while_damage_is_set_aside_does_not_end_the_run(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = driver(disk)
    first.run(lambda flow: flow.step(Add(5)).published())
    disk.put(file_of(disk, first.events[0][1]), b"6")
    move, refused = disk.move, []

    def once(source: str, target: str) -> None:
        if not refused:
            refused.append(source)
            raise StoreError(f"{source}: away")
        move(source, target)

    monkeypatch.setattr(disk, "move", once)
    second = driver(disk)

    async def run(flow: Flow) -> int:
        return int((await flow.step(Add(1), x=flow.step(Add(5))))["sum"])

    assert second.run(run) == 6
    assert refused
    assert second.count("recomputed") == 1


def test_a_publication_that_another_driver_has_mended_meanwhile_is_not_set_aside(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moving a large file takes a while, in which a quicker driver may set the same aside, compute and publish."""
    first = driver(disk)
    first.run(lambda flow: flow.step(Add(5)).published())
    handle, ledger = first.events[0][1], Ledger(disk)
    disk.put(file_of(disk, handle), b"6")
    damaged = Damaged(handle.key, "sum.txt", "is not what it was")
    move, mended = disk.move, []

    def slow(source: str, target: str) -> None:
        if not mended:
            monkeypatch.setattr(disk, "move", move)
            assert ledger.set_aside(damaged) is not None
            mended.append(driver(disk).run(lambda flow: flow.step(Add(5)).published()))
        move(source, target)

    monkeypatch.setattr(disk, "move", slow)
    assert ledger.set_aside(damaged) is None
    assert [ledger.find(handle.key)] == mended


def test_damage_in_an_input_of_more_readers_than_slots_does_not_block(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.engine, "IN_FLIGHT", 2)
    first = driver(disk)
    first.run(lambda flow: flow.step(Add(5)).published())
    disk.put(file_of(disk, first.events[0][1]), b"6")

    async def run(flow: Flow) -> list[int]:
        readers = [flow.step(Add(number), x=flow.step(Add(5))) for number in range(6)]
        return [(await reader)["sum"] for reader in readers]

    assert driver(disk).run(run, limit=20) == [5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"key": "x", "digest": "y"}'])
def test_a_damaged_manifest_is_set_aside_and_its_step_recomputed(disk: Store, tmp_path: Path, content: bytes) -> None:
    trace = tmp_path / "trace"
    run = lambda flow: flow.step(Add(5, str(trace))).published()
    first, second = driver(disk), driver(disk)
    key = first.run(run).key
    disk.put(f"{folder_of(key)}/manifest.json", content)
    assert second.run(run).read("sum.txt") == b"5"
    assert lines(trace) == ["add 5"] * 2
    told = second.news("recomputed")
    assert len(told) == 1
    assert disk.get(f"{told[0]['aside']}/manifest.json") == content


def test_a_flipped_byte_is_found_before_reuse_when_asked_to_verify(disk: Store) -> None:
    run = lambda flow: flow.step(Add(5)).published()
    first = driver(disk)
    first.run(run)
    path = file_of(disk, first.events[0][1])
    disk.put(path, b"6")
    trusting, checking = driver(disk), driver(disk, verify=True)
    trusting.run(run)
    assert trusting.count("recomputed") == 0
    assert checking.run(run).read("sum.txt") == b"5"
    assert checking.count("recomputed") == 1


class Spoils(ThreadExecutor):
    """Damages each publication before the driver looks at it, `times` times."""

    def __init__(self, store: Store, path: str, times: int) -> None:
        super().__init__()
        self.store, self.path, self.times = store, path, times

    async def outcome(self, running: Any) -> Outcome:
        outcome: Outcome = await running
        if outcome.state == "published" and self.times > 0:
            self.times -= 1
            key = self.orders[-1].key
            self.store.put(f"{folder_of(key)}/{self.path}", b"broken")
        return outcome


def test_a_publication_damaged_at_once_is_recomputed(disk: Store) -> None:
    made = Driver(disk, Spoils(disk, "manifest.json", 1), QUICK)
    assert made.run(lambda flow: flow.step(Add(5)).published()).read("sum.txt") == b"5"
    assert made.count("recomputed") == 1


def test_a_store_that_always_spoils_is_given_up_with_a_store_failure(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUDGET, "store", 1)
    made = Driver(disk, Spoils(disk, "manifest.json", 100), QUICK)
    with pytest.raises(StepFailed) as failure:
        made.run(lambda flow: flow.step(Add(5)).published())
    assert failure.value.cause == "store"


class SpoilsInputs(ThreadExecutor):
    """Damages what a step reads, each time before it is read."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store

    def submit(self, order: Order) -> Any:
        for key in order.inputs.values():
            self.store.put(f"{folder_of(key)}/manifest.json", b"{")
        return super().submit(order)


def test_an_input_that_is_damaged_again_and_again_is_given_up(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUDGET, "store", 2)
    made = Driver(disk, SpoilsInputs(disk), QUICK)
    with pytest.raises(StepFailed, match="again and again") as failure:
        made.run(lambda flow: flow.step(Add(1), x=flow.step(Add(5))).published(), limit=20)
    assert failure.value.cause == "store"
    assert made.count("recomputed") == 2


class SpoilsOwn(ThreadExecutor):
    """Leaves a torn manifest in a step's place between the driver's look and the worker's."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store

    def submit(self, order: Order) -> Any:
        if not self.orders:
            self.store.put(f"{folder_of(order.key)}/manifest.json", b"{")
        return super().submit(order)


def test_a_torn_manifest_that_the_worker_meets_first_is_recomputed(disk: Store) -> None:
    made = Driver(disk, SpoilsOwn(disk), QUICK)
    assert made.run(lambda flow: flow.step(Add(5)).published()).read("sum.txt") == b"5"
    assert made.count("recomputed") == 1


def test_a_removed_input_is_computed_again(disk: Store, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    made = driver(disk)

    async def run(flow: Flow) -> Any:
        base = flow.step(Add(5, str(trace)))
        await base
        disk.delete([f"{folder_of(base.key)}/manifest.json"])
        return (await flow.step(Add(1), x=base))["sum"]

    assert made.run(run) == 6
    assert lines(trace) == ["add 5"] * 2
