"""The engine on Ray: workers that die, freeze and are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.engine import Stopped
from cluster.executor import RayExecutor
from cluster.failures import BUDGET, StepFailed
from cluster.flow import Flow
from cluster.ledger import Ledger, folder_of
from cluster.store import Store
from tests.cluster.driving import SHORT, Driver, fan, fan_sum
from tests.cluster.toys import Add, Count, DieOften, DieOnce, Fail, Freeze, Toy


def driver(store: Store, ray: Any, **options: Any) -> Driver:
    return Driver(store, RayExecutor(ray), **options)


def lines(trace: Path) -> list[str]:
    return trace.read_text().splitlines() if trace.exists() else []


async def grown(trace: Path, length: int) -> None:
    while len(lines(trace)) < length:
        await asyncio.sleep(0.02)


def test_a_graph_is_computed_once_and_a_deeper_one_recomputes_nothing_of_it(
    disk: Store, tmp_path: Path, ray: Any
) -> None:
    trace = tmp_path / "trace"
    first = driver(disk, ray)
    assert first.run(lambda flow: fan(flow, str(trace), 4, 0.0)) == fan_sum(4)
    prefix = {handle.key for state, handle, _ in first.events if state == "published"}
    before = {key: leases(disk, key) for key in prefix}
    assert len(prefix) == 10
    assert all(len(names) == 1 for names in before.values())

    async def deeper(flow: Flow) -> Any:
        base = flow.step(Count(20, 0.0, f"{trace}.count"))
        row = flow.step(Add(0, str(trace)), x=base)
        top = flow.step(Add(100, str(trace)), x=row)
        return (await flow.step(Add(7, str(trace)), x=top))["sum"]

    second = driver(disk, ray)
    assert second.run(deeper) == 127
    assert {key: leases(disk, key) for key in prefix} == before
    assert second.count("started") == 1
    assert len(lines(trace)) == 10


def leases(store: Store, key: str) -> dict[str, bytes | None]:
    return {path: store.get(path) for path in store.paths(folder_of(key)) if "lease-" in path}


def test_each_failure_is_met_by_its_class(disk: Store, tmp_path: Path, ray: Any, capfd: Any) -> None:
    """One killed, one frozen, one wrong, one fine: all at once, on two CPUs."""
    made = driver(disk, ray)
    trace = tmp_path / "trace"

    async def run(flow: Flow) -> list[Any]:
        steps = [
            flow.step(DieOnce(str(tmp_path / "died"))),
            flow.step(Freeze(str(tmp_path / "froze"))),
            flow.step(Fail("no good", trace=str(trace))),
            flow.step(Add(4)),
        ]
        return await asyncio.gather(*(step.published() for step in steps), return_exceptions=True)

    died, froze, wrong, fine = made.run(run)
    assert died.metrics == froze.metrics == {"alive": True}
    assert fine.metrics == {"sum": 4}
    assert isinstance(wrong, StepFailed)
    assert (wrong.cause, wrong.message) == ("user", "no good")
    assert b"ValueError: no good" in (disk.get(wrong.log) or b"")
    assert lines(trace) == ["fail"]
    causes = {str(handle.task.kind): news["cause"] for state, handle, news in made.events if state == "retried"}
    assert causes == {"dieonce": "node", "freeze": "partition"}
    assert "raylet" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "kill_at", [8, pytest.param(15, marks=pytest.mark.slow), pytest.param(25, marks=pytest.mark.slow)]
)
def test_a_killed_worker_loses_at_most_one_checkpoint_interval(
    disk: Store, tmp_path: Path, ray: Any, kill_at: int
) -> None:
    trace, pause = tmp_path / "trace", 0.05
    made = driver(disk, ray)

    async def run(flow: Flow) -> Any:
        step = flow.step(Count(30, pause, str(trace)))
        await grown(trace, kill_at)
        os.kill(int(lines(trace)[-1].split()[0]), signal.SIGKILL)
        return await step

    assert made.run(run) == {"count": 30}
    times = Counter(int(line.split()[1]) for line in lines(trace))
    assert sorted(times) == list(range(30))
    assert sum(times.values()) - 30 <= SHORT.checkpoint / pause + 1  # and the number that it was at
    assert len({line.split()[0] for line in lines(trace)}) == 2
    assert made.news("retried")[0]["cause"] == "node"


def test_deaths_beyond_the_budget_end_the_step(
    disk: Store, tmp_path: Path, ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUDGET, "node", 1)
    trace = tmp_path / "trace"
    made = driver(disk, ray)
    with pytest.raises(StepFailed) as failure:
        made.run(lambda flow: flow.step(DieOften(9, False, str(trace))).published())
    assert failure.value.cause == "node"
    assert (len(lines(trace)), made.count("retried"), made.count("failed")) == (2, 1, 1)


def test_deaths_after_progress_do_not_use_up_the_budget(
    disk: Store, tmp_path: Path, ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUDGET, "node", 1)
    trace = tmp_path / "trace"
    made = driver(disk, ray)
    found = made.run(lambda flow: flow.step(DieOften(3, True, str(trace))).published())
    assert found.metrics == {"state": 3}
    assert (len(lines(trace)), made.count("retried")) == (4, 3)


class Unsendable(Toy):
    def __reduce__(self) -> Any:
        return (_explode, ())


def _explode() -> Any:
    raise ImportError("no such module on this worker")


def test_a_task_that_the_worker_cannot_load_is_the_users_error(disk: Store, ray: Any) -> None:
    with pytest.raises(StepFailed) as failure:
        driver(disk, ray).run(lambda flow: flow.step(Unsendable()).published())
    assert failure.value.cause == "user"
    assert "no such module on this worker" in failure.value.message


def test_damage_is_recomputed_on_ray_too(disk: Store, tmp_path: Path, ray: Any) -> None:
    trace = tmp_path / "trace"
    base = Add(5, str(trace))
    key = driver(disk, ray).run(lambda flow: flow.step(base).published()).key
    found = Ledger(disk).find(key)
    assert found is not None
    disk.put(found.manifest["files"]["sum.txt"]["path"], b"6")
    made = driver(disk, ray)
    assert made.run(lambda flow: flow.step(Add(1), x=flow.step(base)).published()).metrics == {"sum": 6}
    assert made.count("recomputed") == 1
    assert lines(trace) == ["add 5"] * 2


def test_stopped_workers_save_and_leave_and_queued_ones_never_start(disk: Store, tmp_path: Path, ray: Any) -> None:
    traces = [tmp_path / f"trace-{number}" for number in range(4)]
    tasks = [Count(24, 0.05, str(trace)) for trace in traces]  # two run, two wait for a CPU
    made = driver(disk, ray)

    async def run(flow: Flow) -> Any:
        steps = [flow.step(task) for task in tasks]
        while sum(len(lines(trace)) > 5 for trace in traces) < 2:
            await asyncio.sleep(0.02)
        await made.engine.stop()
        return await asyncio.gather(*(step.published() for step in steps), return_exceptions=True)

    assert all(isinstance(result, Stopped) for result in made.run(run))
    assert sorted(len(lines(trace)) > 0 for trace in traces) == [False, False, True, True]
    following = driver(disk, ray)

    async def go_on(flow: Flow) -> list[Any]:
        return [await flow.step(task) for task in tasks]

    assert following.run(go_on) == [{"count": 24}] * 4
    for trace in traces:
        assert [int(line.split()[1]) for line in lines(trace)] == list(range(24))


def test_a_worker_that_does_not_leave_is_ended_and_the_session_stays_usable(
    disk: Store, tmp_path: Path, ray: Any
) -> None:
    trace = tmp_path / "trace"
    made = driver(disk, ray, terms=replace(SHORT, farewell=0.5, checkpoint=1000.0))

    async def run(flow: Flow) -> Any:
        step = flow.step(Freeze(str(tmp_path / "froze")))
        while not (tmp_path / "froze").exists():
            await asyncio.sleep(0.02)
        await made.engine.stop()
        return await asyncio.gather(step.published(), return_exceptions=True)

    assert isinstance(made.run(run)[0], Stopped)
    assert driver(disk, ray).run(lambda flow: flow.step(Add(1, str(trace))).published()).metrics == {"sum": 1}


def test_sessions_may_follow_each_other_and_leave_the_handling_of_signals_as_it_was() -> None:
    program = (
        "import signal\nfrom cluster.session import session\n"
        "def mine(number, frame): ...\n"
        "signal.signal(signal.SIGTERM, mine)\n"
        "with session('local', cpus=1): pass\n"
        "with session('local', cpus=1):\n    print(signal.getsignal(signal.SIGTERM) is mine)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert said.stdout == "True\n", said.stderr
