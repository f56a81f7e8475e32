"""What steps take of memory: measured in the worker, remembered in the store, and given to the next of their sort."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster import worker
from cluster.failures import StepFailed
from cluster.flow import Flow
from cluster.ledger import Ledger, folder_of
from cluster.meter import CONTEXT, Cuda, Meter
from cluster.order import Order, Outcome
from cluster.placement import GB, GPU_TYPE, Machine, Needs, misfit, parse_rules
from cluster.profiles import GRAIN, GpuPeak, Placing, Profile, Profiles, sort_of
from cluster.step import key_of
from cluster.store import Store, StoreError
from cluster.worker import run_step
from tasks.training.train import Train
from tests.cluster.driving import SHORT, ThreadExecutor
from tests.cluster.sharing import TOTAL, FakeTorch, Learn, measured, placed

SHARE = 0.15  # (1 GiB * 1.2 + 0.75 GiB) / 16 GiB = 0.122, in twentieths


class FakeDevice:
    total = TOTAL
    shares: list[float] = []  # noqa: RUF012 - shared by those of one test

    def begin(self, share: float) -> None:
        self.shares.append(share)

    def peak(self) -> int:
        return 2**30


def memory(peak: int = 2**30, host: int = 2**30, of: str = "") -> dict[str, Any]:
    return {"host": host, "gpu": {"type": of, "peak": peak, "total": TOTAL}}


def test_steps_that_differ_in_their_seeds_are_of_one_sort_and_others_are_not() -> None:
    base: dict[str, Any] = {
        "data": {"kind": "mnist-mini", "split_seed": 3},
        "architecture": "lenet-300-100",
        "optimizer": {"kind": "sgd", "learning_rate": 0.1},
        "epochs": 1,
    }
    first = sort_of(Train.model_validate(base))
    assert first.startswith("train-")
    for same in ({"seed": 7}, {"init_seed": 3}, {"gpus": 1}, {"data": {"kind": "mnist-mini", "split_seed": 4}}):
        assert sort_of(Train.model_validate({**base, **same})) == first
    other_rate = {"optimizer": {"kind": "sgd", "learning_rate": 0.2}}
    assert sort_of(Train.model_validate({**base, **other_rate})) == first
    for other in ({"batch_size": 64}, {"architecture": "conv-2"}, {"objective": {"kind": "pgd", "epsilon": 0.1}}):
        assert sort_of(Train.model_validate({**base, **other})) != first


@pytest.mark.parametrize(
    ("peak", "total", "share"),
    [
        (2**30, 16 * 2**30, 0.15),
        (0, 16 * 2**30, 0.05),
        (10 * 2**30, 80 * 2**30, 0.2),
        (70 * 2**30, 80 * 2**30, 1.0),
        (90 * 2**30, 80 * 2**30, 1.0),
    ],
)
def test_a_share_holds_the_peak_with_room_to_spare_in_twentieths(peak: int, total: int, share: float) -> None:
    given = GpuPeak(peak, total).share
    assert given == pytest.approx(share)
    if given < 1:
        assert (given - CONTEXT / total) * total >= 1.2 * peak
        assert (given - 0.05) * total < 1.2 * peak + CONTEXT


def test_profiles_are_remembered_and_grow(disk: Store) -> None:
    first = Profiles(disk)
    first.load("learn-1")
    assert first.of("learn-1") is None
    assert first.learn("learn-1", memory(3 * 2**30, of="H100"))
    assert first.learn("learn-1", memory(2**30, host=2**31, of="T4"))
    assert not first.learn("learn-1", memory(2**30 - GRAIN // 2, host=2**30, of="T4"))
    second = Profiles(disk)
    second.load("learn-1")
    assert second.of("learn-1") == Profile(2**31, {"H100": GpuPeak(3 * 2**30, TOTAL), "T4": GpuPeak(2**30, TOTAL)})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": 1}', b'{"host": 1, "gpus": {"": {"p": 1}}}'])
def test_a_damaged_profile_is_measured_anew(disk: Store, content: bytes) -> None:
    disk.put("profiles/learn-1.json", content)
    profiles = Profiles(disk)
    profiles.load("learn-1")
    assert profiles.of("learn-1") is None
    assert profiles.learn("learn-1", memory())
    again = Profiles(disk)
    again.load("learn-1")
    assert again.of("learn-1") == profiles.of("learn-1")


def test_a_store_that_is_away_costs_a_profile_and_no_step(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*asked: Any) -> Any:
        raise StoreError("away")

    monkeypatch.setattr(disk, "get", away)
    monkeypatch.setattr(disk, "put", away)
    profiles = Profiles(disk)
    profiles.load("learn-1")
    assert profiles.learn("learn-1", memory())
    known = profiles.of("learn-1")
    assert known is not None
    assert known.gpus[""].share == pytest.approx(SHARE)


def auto(store: Store, *machines: Machine, rules: tuple[str, ...] = ("gpus=auto", "memory=auto")) -> Placing:
    return Placing(parse_rules(rules), Profiles(store), lambda: machines)


def test_the_first_of_its_sort_gets_a_whole_gpu_and_the_next_what_it_took(disk: Store) -> None:
    placing, task = auto(disk), Learn(1, gpus=1)
    placing.load(task)
    assert placing.needs(task) == Needs(1, 1)
    assert placing.needs(task).provisional
    assert placing.learn(task, {"memory": memory()})
    later = placing.needs(Learn(2, gpus=1))
    assert later == Needs(1, pytest.approx(SHARE), round(1.2 * 2**30))
    assert not later.provisional
    assert placing.needs(Learn(2, width=9, gpus=1)) == Needs(1, 1)
    assert placing.needs(Learn(2, gpus=1), starved=1) == Needs(1, 1, 2 * round(1.2 * 2**30))
    assert placing.needs(Learn(2)).gpus == 0
    another = auto(disk)
    another.load(task)
    assert another.needs(task) == later


def test_a_step_gets_a_part_only_when_every_type_of_gpu_that_it_may_get_was_measured(disk: Store) -> None:
    large, small = (Machine({"GPU": 1}, {GPU_TYPE: name}) for name in ("H100", "T4"))
    task, rules = Learn(1, gpus=1), ("gpus=auto", f"{GPU_TYPE}=H100")
    placing = auto(disk, large, small, Machine({"CPU": 1}, {}))
    placing.learn(task, {"memory": memory(2**30, of="H100")})
    assert placing.needs(task).gpus == 1
    assert placing.needs(task).provisional
    named = auto(disk, large, small, rules=rules)
    named.load(task)
    assert named.needs(task).gpus == pytest.approx(SHARE)
    placing.learn(task, {"memory": memory(4 * 2**30, of="T4")})
    assert placing.needs(task).gpus == pytest.approx(0.35)


def test_the_bound_of_a_process_leaves_room_for_what_cuda_takes_beside_it() -> None:
    torch = FakeTorch()
    meter = Meter(0.5, "T4", lambda: Cuda(torch))
    assert torch.calls == [("empty", None), ("reset", None), ("bound", 0.5 - CONTEXT / TOTAL)]
    assert meter.record()["gpu"] == {"type": "T4", "peak": 2**30, "total": TOTAL}
    torch.calls.clear()
    Meter(1, "T4", lambda: Cuda(torch))
    assert torch.calls[-1] == ("bound", 1.0)
    torch.calls.clear()
    assert set(Meter(0, "", lambda: Cuda(torch)).record()) == {"host"}
    assert torch.calls == []


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux counts peaks anew")
def test_the_peak_of_a_step_is_its_own_and_not_that_of_the_step_before() -> None:
    size = 200 * 2**20
    before = Meter(0).record()["host"]
    meter = Meter(0)
    hog = b"\1" * size
    del hog
    assert meter.record()["host"] > before + 0.9 * size
    assert Meter(0).record()["host"] < before + 0.5 * size


def test_what_a_step_took_stands_in_its_manifest_and_not_in_its_results(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "Meter", partial(Meter, device=FakeDevice))
    task = Learn(1, gpus=1)
    key = key_of(task.identity(), {})
    order = Order(key, task, {}, disk.url, "driver", "d-1", 0, SHORT, needs=Needs(1, 0.5))
    assert run_step(order, "node", "T4") == Outcome("published")
    published = Ledger(disk).find(key)
    assert published is not None
    assert published.manifest["memory"]["gpu"] == {"type": "T4", "peak": 2**30, "total": TOTAL}
    assert published.metrics == {"seed": 1}
    assert set(published.manifest["files"]) == {"sum.txt"}


class OneGpu(ThreadExecutor):
    """A queue before one GPU, which starts an attempt when its share of it is free."""

    def __init__(self) -> None:
        super().__init__()
        self.free = 1.0
        self.starts = True
        self.queue: list[tuple[Order, asyncio.Future[Any]]] = []

    def submit(self, order: Order) -> Any:
        outcome = asyncio.get_running_loop().create_future()
        self.queue.append((order, outcome))
        self._start()
        return outcome

    def _start(self) -> None:
        while self.starts and self.queue and self.queue[0][0].needs.gpus <= self.free + 1e-9:
            order, outcome = self.queue.pop(0)
            self.free -= order.needs.gpus
            super().submit(order).add_done_callback(partial(self._end, order, outcome))

    def _end(self, order: Order, outcome: asyncio.Future[Any], made: asyncio.Future[Any]) -> None:
        self.free += order.needs.gpus
        if not outcome.done():
            outcome.set_result(made.result())
        self.starts = False
        asyncio.get_running_loop().call_later(1, self._go_on)  # a worker takes a while to start, too

    def _go_on(self) -> None:
        self.starts = True
        self._start()

    def machines(self) -> tuple[Machine, ...]:
        return (Machine({"CPU": 8, "GPU": 1, "memory": 64 * GB}, {}),)

    def kill(self, running: Any) -> None:
        running.cancel()
        self.queue = [(order, outcome) for order, outcome in self.queue if outcome is not running]


def test_what_waits_for_a_whole_gpu_is_asked_for_anew_when_the_first_was_measured(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "Meter", partial(Meter, device=FakeDevice))
    monkeypatch.setattr(FakeDevice, "shares", [])
    executor = OneGpu()
    made = measured(disk, executor)

    async def run(flow: Flow) -> list[Any]:
        return await asyncio.gather(*(flow.step(Learn(seed, pause=0.1, gpus=1)) for seed in range(7)))

    assert made.run(run) == [{"seed": seed} for seed in range(7)]
    assert sorted(FakeDevice.shares) == pytest.approx([SHARE] * 6 + [1])
    assert made.count("retried") == made.count("failed") == 0
    assert len(list(disk.paths("profiles"))) == 1
    assert all(len([path for path in disk.paths(folder_of(handle.key)) if "lease" in path]) == 1 for handle in
               {handle for state, handle, _ in made.events if state == "published"})  # fmt: skip


def test_after_an_out_of_memory_no_more_is_asked_for_than_a_node_has_that_could_run_it(disk: Store) -> None:
    sizes = (("a", 8, 0), ("a", 12, 1), ("b", 64, 0))
    nodes = [Machine({"CPU": 4, "GPU": gpus, "memory": size * GB}, {"zone": zone}) for zone, size, gpus in sizes]
    assert auto(disk, *nodes, rules=("memory=10", "zone=a")).needs(Learn(1), starved=1).memory == 12 * GB
    assert auto(disk, *nodes, rules=("memory=10",)).needs(Learn(1), starved=1).memory == 20 * GB
    assert auto(disk, *nodes, rules=("memory=10",)).needs(Learn(1, gpus=1), starved=1).memory == 12 * GB
    assert auto(disk, *nodes, rules=("memory=100",)).needs(Learn(1), starved=1).memory == 200 * GB
    assert auto(disk, rules=("memory=10",)).needs(Learn(1), starved=1).memory == 20 * GB


class Starving(ThreadExecutor):
    """One node on which every attempt runs out of memory."""

    def submit(self, order: Order) -> Any:
        self.orders.append(order)
        outcome = asyncio.get_running_loop().create_future()
        if not misfit(order.needs, self.machines()):
            outcome.set_result(Outcome("failed", "oom", "it took too much"))
        return outcome

    def machines(self) -> tuple[Machine, ...]:
        return (Machine({"CPU": 4, "memory": 12 * GB}, {}),)


@pytest.mark.parametrize(("given", "asked"), [(4, [4, 8]), (10, [10, 12]), (12, [12])])
def test_a_step_that_took_more_than_the_largest_node_has_ends_as_out_of_memory(
    disk: Store, given: int, asked: list[int]
) -> None:
    executor = Starving()
    made = placed(disk, executor, 0.0, f"memory={given}")

    async def run(flow: Flow) -> Any:
        return await flow.step(Learn(1))

    with pytest.raises(StepFailed) as failed:
        made.run(run)
    assert failed.value.cause == "oom"
    assert [order.needs.memory for order in executor.orders] == [size * GB for size in asked]
