"""A plan walks a workflow without computing, and says what is stored."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from cluster.flow import Flow
from cluster.ledger import Ledger, folder_of
from cluster.plan import Plan, make_plan
from cluster.store import Store
from tests.cluster.driving import Driver, ThreadExecutor, Workflow
from tests.cluster.toys import Add, Fail


def plan(store: Store, workflow: Workflow, **options: Any) -> Plan:
    return asyncio.run(make_plan(store, workflow, **options))


def compute(store: Store, workflow: Workflow) -> Any:
    return Driver(store, ThreadExecutor()).run(workflow)


def numbers(steps: Any) -> list[int]:
    return [step.handle.task.number for step in steps]


async def chain(flow: Flow, length: int) -> Any:
    step = None
    for number in range(length):
        step = flow.at(level=number).step(Add(number), x=step)
    assert step is not None
    return await step


async def until_ten(flow: Flow) -> Any:
    """Its length depends on its results: 0, 1, 3, 6, 10."""
    number, step = 0, flow.step(Add(0))
    while (await step)["sum"] < 10:
        number += 1
        step = flow.step(Add(number), x=step)
    return number


def test_a_plan_names_every_step_and_leaves_nothing_in_the_store(disk: Store) -> None:
    made = plan(disk, lambda flow: chain(flow, 4))
    assert numbers(made.steps) == numbers(made.to_run) == [0, 1, 2, 3]
    assert made.stored == []
    assert list(disk.paths("")) == []


def test_a_plan_tells_what_is_stored_from_what_is_to_run(disk: Store) -> None:
    compute(disk, lambda flow: chain(flow, 2))
    before = set(disk.paths(""))
    made = plan(disk, lambda flow: chain(flow, 5))
    assert (numbers(made.stored), numbers(made.to_run)) == ([0, 1], [2, 3, 4])
    assert set(disk.paths("")) == before


def test_what_a_plan_calls_to_run_is_what_runs(disk: Store) -> None:
    compute(disk, lambda flow: chain(flow, 2))
    made = plan(disk, lambda flow: chain(flow, 5))
    driver = Driver(disk, ThreadExecutor())
    driver.run(lambda flow: chain(flow, 5))
    started = [handle.key for state, handle, _ in driver.events if state == "started"]
    assert started == [step.handle.key for step in made.to_run]


def test_a_step_asked_for_twice_is_planned_once(disk: Store) -> None:
    async def twice(flow: Flow) -> None:
        await flow.together(flow.step(Add(1)), flow.step(Add(1)))

    assert numbers(plan(disk, twice).steps) == [1]


def test_a_workflow_that_needs_an_unknown_metric_is_planned_up_to_it(disk: Store) -> None:
    assert numbers(plan(disk, until_ten).steps) == [0]
    compute(disk, lambda flow: chain(flow, 3))
    made = plan(disk, until_ten)
    assert (numbers(made.stored), numbers(made.to_run)) == ([0, 1, 2], [3])
    compute(disk, until_ten)
    made = plan(disk, until_ten)
    assert (numbers(made.stored), made.to_run) == ([0, 1, 2, 3, 4], [])


def test_branches_that_wait_do_not_hide_what_the_others_ask_for(disk: Store) -> None:
    compute(disk, lambda flow: chain(flow, 40))

    async def branch(flow: Flow, offset: int) -> None:
        await flow.step(Add(offset))  # not there
        flow.step(Add(offset + 1))

    async def known(flow: Flow) -> None:
        for length in range(1, 41):
            await flow.together(chain(flow, length))
        flow.step(Add(999))

    made = plan(disk, lambda flow: flow.together(branch(flow, 500), known(flow), branch(flow, 600)))
    assert sorted(numbers(made.to_run)) == [500, 600, 999]
    assert len(made.stored) == 40


def test_a_damaged_step_is_to_run(disk: Store) -> None:
    compute(disk, lambda flow: chain(flow, 2))
    whole = plan(disk, lambda flow: chain(flow, 2))
    disk.put(f"{folder_of(whole.steps[1].handle.key)}/manifest.json", b"{")
    made = plan(disk, lambda flow: chain(flow, 2))
    assert (numbers(made.stored), numbers(made.to_run)) == ([0], [1])


def test_a_damaged_file_is_to_run_when_files_are_verified(disk: Store) -> None:
    compute(disk, lambda flow: chain(flow, 1))
    key = plan(disk, lambda flow: chain(flow, 1)).steps[0].handle.key
    found = Ledger(disk).find(key)
    assert found is not None
    disk.put(found.manifest["files"]["sum.txt"]["path"], b"broken")
    assert numbers(plan(disk, lambda flow: chain(flow, 1)).to_run) == []
    assert numbers(plan(disk, lambda flow: chain(flow, 1), verify=True).to_run) == [0]


def test_a_plan_is_recorded_with_places_tasks_and_inputs(disk: Store) -> None:
    records = plan(disk, lambda flow: chain(flow.at(replicate=2), 2)).records()
    assert json.loads(json.dumps(records)) == records
    assert records[1]["at"] == {"replicate": 2, "level": 1}
    assert records[1]["inputs"] == {"x": records[0]["key"]}
    assert records[1]["task"]["number"] == 1


def test_an_error_of_the_workflow_is_not_hidden(disk: Store) -> None:
    async def wrong(flow: Flow) -> None:
        flow.step(Fail("never run"))
        raise ValueError("levels: 0 found; at least 1")

    with pytest.raises(ValueError, match="levels"):
        plan(disk, wrong)
