"""A finished step by its key alone: found, fed to others, protected, and never mistaken for one that can be redone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from cluster.collect import collect
from cluster.failures import StepFailed
from cluster.flow import Flow, Handle
from cluster.ledger import Ledger, folder_of
from cluster.plan import Plan, make_plan
from cluster.runs import Run, finished_steps, write_plan
from cluster.store import Store
from tests.cluster.driving import SHORT, Driver, ThreadExecutor, Workflow
from tests.cluster.toys import Add
from workflows.command.explain import explain_step

QUICK = replace(SHORT, ttl=0.6)


def driver(store: Store, **options: Any) -> Driver:
    return Driver(store, ThreadExecutor(), **{"terms": QUICK, **options})


def plan(store: Store, workflow: Workflow, **options: Any) -> Plan:
    return asyncio.run(make_plan(store, workflow, **options))


def publish(store: Store, key: str, **manifest: Any) -> str:
    """A finished step with a key of one's choice."""
    ledger = Ledger(store)
    lease = ledger.lease(key, f"attempt-{key}")
    assert lease is not None
    ledger.publish(lease, {}, {"task": {"kind": "toy"}, "inputs": {}, "metrics": {}, **manifest})
    return key


def compute(store: Store) -> tuple[str, str]:
    """The keys of a step, and of one that it feeds."""

    async def run(flow: Flow) -> tuple[str, str]:
        base = flow.step(Add(2))
        top = flow.step(Add(3), x=base)
        await top
        return base.key, top.key

    keys: tuple[str, str] = driver(store).run(run)
    return keys


def add_to(prefix: str, number: int = 100) -> Workflow:
    async def run(flow: Flow) -> Handle:
        handle = flow.step(Add(number), x=await flow.stored(prefix))
        await handle
        return handle

    return run


@pytest.mark.parametrize("digits", [4, 11, 64])
def test_a_stored_step_feeds_others_by_any_beginning_of_its_key(disk: Store, digits: int) -> None:
    _, top = compute(disk)
    made = driver(disk)
    handle = made.run(add_to(top[:digits]))
    assert Ledger(disk).find(handle.key).metrics == {"sum": 105}  # type: ignore[union-attr]
    assert made.count("started") == 1, "what is stored is not computed again"

    async def by_task(flow: Flow) -> str:
        return flow.step(Add(100), x=flow.step(Add(3), x=flow.step(Add(2)))).key

    assert driver(disk).run(by_task) == handle.key, "how a step is asked for must not change the keys after it"


def test_a_stored_step_can_be_awaited_and_read(disk: Store) -> None:
    base, _ = compute(disk)

    async def run(flow: Flow) -> Any:
        handle = await flow.at(model="mine").stored(base)
        return str(handle), await handle, (await handle.published()).read("sum.txt")

    assert driver(disk).run(run) == (f"add mine [{base[:12]}]", {"sum": 2}, b"2")


def test_a_plan_counts_it_as_stored_and_records_what_fed_it(disk: Store) -> None:
    base, top = compute(disk)
    made = plan(disk, add_to(top[:8]))
    assert [step.handle.key for step in made.stored] == [top]
    assert [step.handle.task.kind for step in made.to_run] == ["add"]
    assert made.records()[0]["inputs"] == {"x": base}
    assert made.records()[0]["task"] == Add(3).identity()


def test_a_whole_key_is_looked_up_without_listing(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _, top = compute(disk)
    monkeypatch.setattr(Store, "entries", lambda *_: pytest.fail("listed"))
    monkeypatch.setattr(Store, "folders", lambda *_: pytest.fail("listed"))
    assert Ledger(disk).look_up(top).key == top


def test_a_beginning_is_looked_up_among_its_neighbours_alone(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _, top = compute(disk)
    asked: list[str] = []
    folders = Store.folders
    monkeypatch.setattr(Store, "folders", lambda store, prefix: asked.append(prefix) or folders(store, prefix))
    Ledger(disk).look_up(top[:6])
    assert asked == [f"steps/{top[:2]}"]


@pytest.mark.parametrize("prefix", ["abc", "", "ABCD", "not-a-key", "a" * 65])
def test_what_is_no_key_is_refused(disk: Store, prefix: str) -> None:
    with pytest.raises(ValueError, match="is no step's key: a key is 64 hexadecimal digits"):
        Ledger(disk).look_up(prefix)


def test_an_unknown_or_ambiguous_beginning_is_one_line_before_anything_runs(store: Store) -> None:
    publish(store, "abcd" + "0" * 60)
    publish(store, "abcd" + "1" * 60)
    unfinished = Ledger(store).lease("abee" + "2" * 60, "attempt")
    assert unfinished is not None
    for prefix, message in {
        "abcd": "^2 finished steps begin with 'abcd': abcd00000000 .toy., abcd11111111 .toy.; give more digits$",
        "12ab": "^no finished step begins with '12ab'; `hedgerow show RUN --json` lists a run's keys$",
        "abee": "^no finished step begins with 'abee'; ",
        "f" * 64: "^no finished step begins with 'f{64}'; ",
    }.items():
        with pytest.raises(ValueError, match=message):
            plan(store, add_to(prefix))
    assert Ledger(store).look_up("abcd1").key == "abcd" + "1" * 60


def test_a_torn_manifest_is_one_line(disk: Store) -> None:
    _, top = compute(disk)
    disk.put(f"{folder_of(top)}/manifest.json", b"{")
    with pytest.raises(
        ValueError, match=r"manifest.json is damaged: not a manifest; resume the run that made this step"
    ):
        plan(disk, add_to(top))


def damage(store: Store, key: str) -> None:
    found = Ledger(store).find(key)
    assert found is not None
    store.put(str(found.manifest["files"]["sum.txt"]["path"]), b"6")


def test_damage_that_a_reader_meets_fails_once_and_says_what_to_do(disk: Store) -> None:
    _, top = compute(disk)
    damage(disk, top)

    async def run(flow: Flow) -> None:
        source = await flow.stored(top)
        await flow.together(*(flow.step(Add(number), x=source) for number in range(100, 106)))

    made = driver(disk)
    with pytest.raises(StepFailed, match=r"sum.txt is damaged.*; its key does not say how.*resume the run that"):
        made.run(run, limit=20)
    assert [event["cause"] for event in made.news("failed")] == ["store"], "told once, not by every reader"
    assert made.count("recomputed") == made.count("published") == 0
    assert compute(disk)[1] == top, "whoever has its task computes it anew"
    driver(disk).run(run)


def test_damage_is_found_before_work_starts_when_asked_to_verify(disk: Store) -> None:
    _, top = compute(disk)
    damage(disk, top)
    with pytest.raises(ValueError, match=r"sum.txt is damaged: .*; resume the run that made this step"):
        plan(disk, add_to(top), verify=True)
    made = driver(disk, verify=True)
    with pytest.raises(StepFailed, match=r"sum.txt is damaged"):
        made.run(add_to(top))
    assert made.count("started") == 0


def test_a_run_that_names_a_stored_step_keeps_it_and_what_fed_it(disk: Store) -> None:
    base, top = compute(disk)
    made = plan(disk, add_to(top[:8]))
    Run.open(disk, "reader", {"name": "reader", "recipe": {}})
    write_plan(disk, "reader", made.records())
    collected = collect(disk, remove=True, grace=0.0)
    assert collected.named == 2
    assert Ledger(disk).find(base) is not None
    assert [step.step.key for step in finished_steps(disk, "reader")] == [top]


def test_explain_names_the_stored_step_that_fed_another(disk: Store) -> None:
    _, top = compute(disk)
    handle = driver(disk).run(add_to(top[:8]))
    explained = explain_step(disk, handle.key)
    assert explained["inputs"]["x"]["key"] == top
    assert explained["state"] == "stored"
