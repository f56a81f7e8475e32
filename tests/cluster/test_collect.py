"""Garbage collection: what goes, what stays, and what must not happen in between."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cluster.collect import WEEK, collect
from cluster.ledger import Ledger, folder_of
from cluster.owner import Owner
from cluster.runs import EventLog, Run, write_plan
from cluster.store import Store

HOUR = 3600.0
OLD = 0.0
"""A grace of nothing: whatever is there is old enough to be judged."""


def key(number: int) -> str:
    return f"{number:02x}" * 32


def publish(store: Store, number: int, *inputs: int, files: dict[str, bytes] | None = None) -> str:
    ledger = Ledger(store)
    lease = ledger.lease(key(number), f"attempt-{number}")
    assert lease is not None
    feeding = {f"input{index}": key(upstream) for index, upstream in enumerate(inputs)}
    manifest = {"task": {"kind": "toy"}, "inputs": feeding, "metrics": {}}
    ledger.publish(lease, {"weights": b"w" * 100} if files is None else files, manifest)
    ledger.beat(lease, state="done")
    return key(number)


def name(store: Store, run_id: str, *numbers: int) -> None:
    Run.open(store, run_id, {"name": run_id, "recipe": {}})
    write_plan(store, run_id, [{"key": key(number), "at": {}} for number in numbers])


def objects(store: Store) -> dict[str, bytes | None]:
    return {path: store.get(path) for path in store.paths("")}


def stored(store: Store) -> set[int]:
    return {number for number in range(1, 100) if Ledger(store).find(key(number)) is not None}


def age(store: Store, prefix: str, seconds: float) -> None:
    for path in Path(store.url, prefix).rglob("*"):
        if path.is_file():
            then = path.stat().st_mtime - seconds
            os.utime(path, (then, then))


def counts(record: dict[str, Any]) -> dict[str, int]:
    return {kind["what"]: kind["count"] for kind in record["garbage"] if kind["count"]}


def test_what_no_run_names_goes_and_what_feeds_a_named_step_stays(store: Store) -> None:
    publish(store, 1)
    publish(store, 2, 1)
    publish(store, 3, 2)
    publish(store, 4, 1)
    name(store, "run", 3)  # knows nothing of 2 and 1: only the manifests do
    collected = collect(store, remove=True, grace=OLD)
    assert stored(store) == {1, 2, 3}
    assert not list(store.paths(folder_of(key(4))))
    assert counts(collected.record()) == {"steps that no run names": 1}


def test_a_dry_run_changes_nothing_and_announces_what_a_real_one_removes(store: Store) -> None:
    publish(store, 1)
    publish(store, 2)
    store.put(f"{folder_of(key(1))}/failure-a.txt", b"trace")
    name(store, "kept", 1)
    name(store, "dropped", 2)
    before = objects(store)
    announced = collect(store, ["dropped"], grace=OLD)
    assert objects(store) == before
    removed = collect(store, ["dropped"], remove=True, grace=OLD)
    assert announced.record() | {"removed": True} == removed.record()
    gone = [data for path, data in before.items() if path not in objects(store)]
    assert sum(len(data or b"") for data in gone) == removed.record()["bytes"]
    assert len(gone) == sum(kind["objects"] for kind in removed.record()["garbage"])
    assert "nothing was removed" in announced.summary()


def test_a_young_step_that_no_run_names_yet_stays(disk: Store) -> None:
    publish(disk, 1)
    publish(disk, 2)
    age(disk, folder_of(key(2)), 2 * HOUR)
    collected = collect(disk, remove=True)
    assert stored(disk) == {1}
    assert collected.spared == 1


def test_a_forgotten_run_takes_only_the_steps_that_no_other_run_names(disk: Store) -> None:
    for number in (1, 2, 3):
        publish(disk, number)
    name(disk, "first", 1, 2)
    name(disk, "second", 2)
    collect(disk, ["fir"], remove=True)  # young, but it was named: the grace is for what is not named yet
    assert disk.folders("runs") == ["second"]
    assert stored(disk) == {2, 3}


def test_an_unknown_run_cannot_be_forgotten(disk: Store) -> None:
    name(disk, "first")
    before = objects(disk)
    with pytest.raises(ValueError, match="no run starts with 'last'; runs here: first"):
        collect(disk, ["last"], remove=True)
    assert objects(disk) == before


def test_a_run_at_work_cannot_be_forgotten(disk: Store) -> None:
    lease = Ledger(disk).lease(key(1), "attempt")
    assert lease is not None
    name(disk, "first", 1)
    with pytest.raises(ValueError, match="run first is at work on step 0101"):
        collect(disk, ["first"], remove=True)
    Ledger(disk).beat(lease, state="released")
    collect(disk, ["first"], remove=True)
    assert not list(disk.paths("steps"))


def test_a_run_whose_driver_lives_cannot_be_forgotten_though_all_its_steps_are_queued(disk: Store) -> None:
    name(disk, "first", 1)
    log = EventLog(disk, "first", "d1")
    log.write("run", state="started", driver="d1", owner=Owner.me().to_json())
    log._flush()
    before = objects(disk)
    with pytest.raises(ValueError, match=r"run first is at work: its driver on \S+ wrote \d+ s ago; stop it first"):
        collect(disk, ["first"], remove=True)
    assert objects(disk) == before
    log.write("run", state="ended", driver="d1", code=0)
    log.close()
    collect(disk, ["first"], remove=True)
    assert not disk.folders("runs")


@pytest.mark.parametrize(
    ("silent", "grace", "stays"), [(HOUR / 2, HOUR, True), (2 * HOUR, HOUR, False), (HOUR / 2, HOUR / 4, False)]
)
def test_a_holder_elsewhere_is_dead_only_after_a_grace_of_silence(
    disk: Store, silent: float, grace: float, stays: bool
) -> None:
    lease = Ledger(disk).lease(key(1), "attempt")
    assert lease is not None
    lease.record["owner"]["host"] = "another/machine"
    Ledger(disk).save_checkpoint(lease, b"state")
    Ledger(disk).beat(lease)
    age(disk, "steps", silent)
    collect(disk, remove=True, grace=grace)
    assert bool(list(disk.paths("steps"))) is stays


def test_leftovers_of_a_published_step_go_and_its_files_stay_intact(store: Store) -> None:
    publish(store, 1, files={"weights": b"w", "checkpoint-notes": b"n"})
    folder = folder_of(key(1))
    for path in ("0001/checkpoint", "0001/half-written", "0002/weights", "failure-a.txt"):
        store.put(f"{folder}/{path}", b"left")
    name(store, "run", 1)
    collected = collect(store, remove=True)
    published = Ledger(store).find(key(1))
    assert published is not None
    published.verify()
    kept = {path.removeprefix(f"{folder}/") for path in store.paths(folder)}
    assert kept == {"manifest.json", "lease-0001.json", "0001/weights", "0001/checkpoint-notes"}
    assert len(counts(collected.record())) == 3


def test_an_unfinished_step_keeps_its_checkpoint_and_its_log_and_loses_half_a_publication(disk: Store) -> None:
    ledger = Ledger(disk)
    lease = ledger.lease(key(1), "attempt")
    assert lease is not None
    ledger.save_checkpoint(lease, b"state")
    disk.put(f"{folder_of(key(1))}/0001/weights", b"half")
    disk.put(f"{folder_of(key(1))}/failure-a.txt", b"trace")
    name(disk, "run", 1)
    assert collect(disk, remove=True).record()["bytes"] == 0  # the holder lives: it may be publishing right now
    ledger.beat(lease, state="released")
    collect(disk, remove=True)
    assert not disk.exists(f"{folder_of(key(1))}/0001/weights")
    assert disk.exists(f"{folder_of(key(1))}/failure-a.txt")
    later = ledger.lease(key(1), "later")
    assert later is not None
    assert ledger.load_checkpoint(later) == b"state"


def test_a_step_that_someone_began_after_the_first_look_stays(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(disk, 1)
    take = Ledger.lease

    def late(ledger: Ledger, *arguments: Any, **named: Any) -> Any:
        disk.put(f"{folder_of(key(1))}/0002/weights", b"new")
        return take(ledger, *arguments, **named)

    monkeypatch.setattr(Ledger, "lease", late)
    collect(disk, remove=True, grace=OLD)
    assert stored(disk) == {1}
    assert disk.exists(f"{folder_of(key(1))}/0002/weights")


def test_a_removal_that_is_cut_short_leaves_no_publication_without_its_files(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(disk, 1, files={"a": b"a", "b": b"b"})
    delete = disk.delete

    def one_by_one(paths: Any) -> None:
        for path in paths:
            delete([path])
            published = Ledger(disk).find(key(1))
            if published is not None:
                published.verify()

    monkeypatch.setattr(disk, "delete", one_by_one)
    collect(disk, remove=True, grace=OLD)
    assert not list(disk.paths("steps"))


def test_strays_go_when_they_are_old(disk: Store) -> None:
    ages = {"set-aside/k/s/w": WEEK, "drivers/d/stop": HOUR, "probe/p": HOUR}
    for path in ages:
        disk.put(path, b"x")
    assert collect(disk, remove=True).record()["bytes"] == 0
    for path, seconds in ages.items():
        age(disk, path.rsplit("/", 1)[0], seconds + 60)
    collect(disk, remove=True)
    assert not list(disk.paths(""))


def test_the_record_is_json(disk: Store) -> None:
    publish(disk, 1)
    assert json.loads(json.dumps(collect(disk).record()))["kept"]["spared steps"] == 1
