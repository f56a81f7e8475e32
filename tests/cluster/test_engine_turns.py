"""Attempts in the order in which the engine asks for them: teams in turn, and anew when nodes go."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cluster.engine
import cluster.placement
from cluster.engine import Stopped
from cluster.flow import Flow
from cluster.ledger import Ledger
from cluster.order import Order, Outcome
from cluster.placement import Machine
from cluster.store import Store
from tests.cluster.driving import SHORT, Driver, ThreadExecutor
from tests.cluster.toys import Add, Wait


@dataclass
class Team(Wait):
    """A step in two processes, which this executor does in one."""

    world_size: int = field(default=2, kw_only=True)
    number: int = field(default=0, kw_only=True)


class Small(ThreadExecutor):
    """With room for one team."""

    def machines(self) -> tuple[Machine, ...]:
        return (Machine({"CPU": 3}, {}),)


def test_no_team_that_waits_for_its_turn_starts_once_the_driver_stops(
    disk: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.placement, "asyncio", SimpleNamespace(sleep=lambda seconds: asyncio.sleep(0.01)))
    flag, started = str(tmp_path / "flag"), tmp_path / "started"
    made = Driver(disk, Small(), replace(SHORT, farewell=0.2))

    async def run(flow: Flow) -> Any:
        steps = [flow.step(Team(flag, str(started), number=number)) for number in range(3)]
        while not started.exists():
            await asyncio.sleep(0.01)
        await made.engine.stop()
        Path(flag).touch()
        return await asyncio.gather(*(step.published() for step in steps), return_exceptions=True)

    assert all(isinstance(result, Stopped) for result in made.run(run))
    assert made.count("started") == len(started.read_text().splitlines()) == 1


def test_teams_that_wait_for_their_turn_keep_nobody_else_from_starting(
    disk: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.placement, "asyncio", SimpleNamespace(sleep=lambda seconds: asyncio.sleep(0.01)))
    monkeypatch.setattr(cluster.engine, "IN_FLIGHT", 2)
    flag, started = str(tmp_path / "flag"), tmp_path / "started"
    made = Driver(disk, Small())

    async def run(flow: Flow) -> Any:
        steps = [flow.step(Team(flag, str(started), number=number)) for number in range(3)]
        while not started.exists():
            await asyncio.sleep(0.01)
        alone = await asyncio.wait_for(flow.step(Add(1)).published(), 5)
        Path(flag).touch()
        await asyncio.gather(*(step.published() for step in steps))
        return alone.metrics

    assert made.run(run) == {"sum": 1}


def test_a_holder_known_to_be_dead_is_passed_over_though_attempts_end_before_they_have_a_lease(disk: Store) -> None:
    """The first attempt dies on another machine with its lease, the second before it has one: the third waits not."""
    elsewhere = {"host": "gone", "pid": 1, "started": 0.0, "boot": "x"}

    class Dies(ThreadExecutor):
        def submit(self, order: Order) -> Any:
            if len(self.orders) > 1:
                return super().submit(order)
            self.orders.append(order)
            if len(self.orders) == 1:
                assert Ledger(disk).lease(order.key, order.attempt, order.over, {"owner": elsewhere}) is not None
            died = asyncio.get_running_loop().create_future()
            died.set_result(Outcome("failed", "node", "its machine is gone"))
            return died

    made = Driver(disk, Dies(), replace(SHORT, ttl=60.0))
    assert made.run(lambda flow: flow.step(Add(5)).published(), limit=20).metrics == {"sum": 5}
    assert [order.over for order in made.engine._executor.orders] == [0, 1, 1]  # type: ignore[attr-defined]


def test_a_step_is_asked_for_anew_however_often_a_node_goes(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    often = 1500

    class Churning(ThreadExecutor):
        def submit(self, order: Order) -> Any:
            if len(self.orders) == often:
                return super().submit(order)
            self.orders.append(order)
            return None

    executor = Churning()
    made = Driver(disk, executor)

    async def outcome(order: Order, running: Any, unplaced: Any) -> Outcome:
        return Outcome("outgrown") if running is None else await running  # type: ignore[no-any-return]

    monkeypatch.setattr(made.engine._watch, "outcome", outcome)
    assert made.run(lambda flow: flow.step(Add(1)).published()).metrics == {"sum": 1}
    assert len({order.attempt for order in executor.orders}) == often + 1
    assert made.count("retried") == 0
