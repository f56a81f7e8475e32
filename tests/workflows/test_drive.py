"""What a driver does with what a workflow meets on its way."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cluster.flow import Flow
from cluster.runs import events_of
from cluster.store import Store
from tasks.measuring.merge import MergeOutcomes
from tests.workflows.conftest import Inline, record_run, write_recipe
from workflows.command.exit_codes import Exit
from workflows.command.launch import Options, _Driver
from workflows.command.recipe import load_recipe
from workflows.imp import IMP


@pytest.mark.parametrize(
    ("mistake", "lines"),
    [
        (lambda: int("seven"), ["recipe small: invalid literal for int() with base 10: 'seven'"]),
        (
            lambda: MergeOutcomes.model_validate({"classes": 0, "votes": 0}),
            [
                "recipe small: classes: Input should be greater than or equal to 1 (found 0)",
                "recipe small: votes: Input should be greater than or equal to 1 (found 0)",
            ],
        ),
    ],
)
def test_what_does_not_fit_in_the_middle_of_a_run_is_a_line_each_and_stops_it(
    disk: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Any, lines: list[str]
) -> None:
    recipe = load_recipe(str(write_recipe(tmp_path)))
    run = record_run(disk, recipe)

    async def stumble(workflow: IMP, flow: Flow) -> None:
        first = flow.step(workflow.train)
        flow.step(workflow.measurement(workflow.train), trained=first)
        await first
        mistake()

    monkeypatch.setattr(IMP, "run", stumble)
    driver = _Driver(recipe, disk, Inline(), Options(disk.url, tmp_path), run)
    assert asyncio.run(driver.drive()) == Exit.FAILED
    assert driver.problems == lines
    ended = [event for event in events_of(disk, run.id) if event.get("state") == "ended"]
    assert ended[-1]["code"] == Exit.FAILED
