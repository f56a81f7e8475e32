"""Placement on real raylets: Ray counts GPUs that are none, and minds labels."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import placement
from cluster.executor import RayExecutor
from cluster.flow import Flow, Handle
from cluster.order import Terms
from cluster.placement import GPU_TYPE
from cluster.profiles import GpuPeak, Profiles, sort_of
from cluster.session import session
from cluster.store import Store
from tests.cluster.clusters import Cluster
from tests.cluster.driving import SHORT
from tests.cluster.sharing import TOTAL, Learn, Meet, measured, placed
from tests.cluster.toys import Add, Wait

pytestmark = pytest.mark.faults

QUICK = replace(SHORT, ttl=1.0)


@pytest.fixture(scope="module")
def one_gpu() -> Iterator[Any]:
    """A Ray session that says it has a GPU: Ray only counts it."""
    with session("local", cpus=4, gpus=1) as connected:
        yield connected


def seen(folder: Path) -> list[tuple[str, str]]:
    """The processes of those that met, and the GPUs that they were shown."""
    notes = (here.read_text().split() for here in sorted(folder.glob("here-*")))
    return [(process, device) for process, device in notes]


@pytest.mark.parametrize(("share", "fit"), [("0.5", 2), ("0.25", 4)])
def test_as_many_steps_as_fit_share_a_gpu_each_in_a_process_of_its_own(
    disk: Store, tmp_path: Path, one_gpu: Any, share: str, fit: int
) -> None:
    driver = placed(disk, RayExecutor(one_gpu), 0, f"meet:gpus={share}")

    async def run(flow: Flow) -> list[Any]:
        return await asyncio.gather(*(flow.step(Meet(number, str(tmp_path), fit)) for number in range(fit)))

    assert driver.run(run) == [{"met": fit, "gpus": float(share)}] * fit
    assert len({process for process, _ in seen(tmp_path)}) == fit
    assert {device for _, device in seen(tmp_path)} == {"0"}


def test_a_process_that_used_a_gpu_is_not_used_again(disk: Store, tmp_path: Path, one_gpu: Any) -> None:
    """It could not change to another GPU, and would keep its memory."""
    driver = placed(disk, RayExecutor(one_gpu), 0, "meet:gpus=1")

    async def run(flow: Flow) -> None:
        for number in range(2):
            await flow.step(Meet(number, str(tmp_path), 1))

    driver.run(run)
    assert len({process for process, _ in seen(tmp_path)}) == 2


def test_a_step_that_only_waits_for_its_turn_is_not_called_unplaceable(
    disk: Store, tmp_path: Path, one_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "SAY_AFTER", 0.1)
    driver = placed(disk, RayExecutor(one_gpu, patience=2.0), 0, terms=QUICK)

    async def run(flow: Flow) -> Any:
        first = flow.step(Wait(str(tmp_path / "first"), str(tmp_path / "begun"), gpus=0.75))
        while not (tmp_path / "begun").exists():
            await asyncio.sleep(0.02)
        second = flow.step(Wait(str(tmp_path), gpus=0.5))
        await asyncio.sleep(1.5)
        (tmp_path / "first").touch()
        return await asyncio.gather(first, second)

    assert driver.run(run) == [{"waited": True}] * 2
    assert driver.count("unplaced") == 0


def test_a_wrong_label_is_explained_and_ends_the_step_alone(
    disk: Store, one_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "SAY_AFTER", 0.5)
    driver = placed(disk, RayExecutor(one_gpu, patience=2.0), 2.0, f"meet:{GPU_TYPE}=H100", terms=QUICK)

    async def run(flow: Flow) -> list[Any]:
        lost, fine = flow.step(Meet(1, "", 1)), flow.step(Add(2))
        return await asyncio.gather(lost, fine, return_exceptions=True)

    failure, fine = driver.run(run)
    reason = f"no node has label {GPU_TYPE}=H100: nodes have no {GPU_TYPE}"
    assert fine == {"sum": 2}
    assert (failure.cause, failure.message) == (
        "node", f"no node can run it: {reason}; waited 2 s for one that can (--wait-for-nodes)"
    )  # fmt: skip
    assert [news["message"] for news in driver.news("unplaced")] == [reason]


def test_with_the_shipped_terms_the_reason_is_told_within_half_a_minute_and_a_node_that_joins_is_used(
    disk: Store, tmp_path: Path
) -> None:
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))  # Ray reads it once in this process
    with contextlib.closing(Cluster(os.environ["RAY_AUTH_TOKEN"])) as made:
        made.add(2, options=["--num-gpus", "1"], labels={"zone": "a"})
        with session(made.address) as ray:
            driver = placed(disk, RayExecutor(ray), 300, "meet:zone=in(b, c)", terms=Terms())
            began, told = time.monotonic(), list[float]()

            def join(state: str, handle: Handle) -> None:
                if state == "unplaced":
                    told.append(time.monotonic() - began)
                    made.add(1, labels={"zone": "c"})

            driver.on_event = join
            assert driver.run(lambda flow: flow.step(Meet(1, str(tmp_path), 1)).published(), 120).metrics["met"] == 1
    assert [news["message"] for news in driver.news("unplaced")] == ["no node has label zone=in(b,c): nodes have a"]
    assert 15 <= told[0] < 30


def test_on_ray_the_first_step_has_the_gpu_to_itself_and_those_after_it_share_it(
    disk: Store, tmp_path: Path, one_gpu: Any
) -> None:
    made, notes = measured(disk, RayExecutor(one_gpu)), tmp_path / "notes"
    notes.mkdir()

    async def run(flow: Flow) -> list[Any]:
        task = Learn(0, 8, 0.5, os.getpid(), str(notes), gpus=1)
        return await asyncio.gather(*(flow.step(replace(task, seed=seed)) for seed in range(6)))

    assert made.run(run) == [{"seed": seed} for seed in range(6)]
    met = sorted(int(note.read_text()) for note in notes.glob("met-*"))
    assert met[0] == 1
    assert len(met) == 6
    assert sum(others >= 3 for others in met) >= 3  # one may have had the GPU before the news of the first came
    profiles = Profiles(disk)
    profiles.load(sort := sort_of(Learn(0)))
    known = profiles.of(sort)
    assert known is not None
    assert known.gpus == {"": GpuPeak(2**30, TOTAL)}
    assert known.host > 10 * 2**20
