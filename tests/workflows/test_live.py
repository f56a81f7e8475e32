"""What is drawn and printed while a run goes on."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from cluster.flow import Handle
from cluster.ledger import Ledger, Published
from cluster.plan import Plan
from cluster.runs import all_runs, finished_steps
from cluster.store import Store
from tests.workflows.conftest import write_recipe
from workflows.command import live
from workflows.command.launch import plan_of
from workflows.command.live import LiveView
from workflows.command.recipe import load_recipe


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("plan")
    return plan_of(load_recipe(str(write_recipe(folder))), Store.open(str(folder / "store")))


class Screen:
    """A view of the plan, and what it shows."""

    def __init__(self, plan: Plan, store: Store, terminal: bool, width: int) -> None:
        self.text = io.StringIO()
        self.console = Console(file=self.text, force_terminal=terminal, width=width, color_system=None)
        self.view = LiveView(self.console, store, plan, cpus=2, gpus=0)
        self.handles = [step.handle for step in plan.steps]

    def table(self) -> str:
        with self.console.capture() as captured:
            self.console.print(self.view._draw())
        return captured.get()


@pytest.fixture
def screen(plan: Plan, disk: Store) -> Screen:
    return Screen(plan, disk, terminal=True, width=80)


@pytest.fixture
def pipe(plan: Plan, disk: Store) -> Screen:
    return Screen(plan, disk, terminal=False, width=80)


def publications(finished: Store) -> Iterator[tuple[str, Any]]:
    for step in finished_steps(finished, all_runs(finished)[0].id):
        yield step.step.key, step.step


def test_the_table_can_be_drawn_after_every_piece_of_news(screen: Screen, finished: Store) -> None:
    published = dict(publications(finished))
    for handle in screen.handles:
        screen.view.tell("asked", handle)
        assert "steps done" in screen.table()
    for done, handle in enumerate(screen.handles, start=1):
        screen.view.tell("started", handle)
        assert "1 queued" in screen.table()
        screen.view.tell("published", handle, published=published[handle.key])
        assert f"{done} of 8 steps done" in screen.table()


def test_a_step_with_a_lease_is_shown_with_its_progress_and_fits_80_columns(
    screen: Screen, disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LOOK_SECONDS", 0.01)
    handle: Handle = screen.handles[-1]
    ledger = Ledger(disk)
    lease = ledger.lease(handle.key, "me")
    assert lease is not None
    ledger.beat(lease, progress=(30, 120, "epoch 3"))
    with screen.view as view:
        view.tell("asked", handle)
        view.tell("started", handle)
        for _ in range(500):
            if "epoch 3" in screen.table():
                break
            view._over.wait(0.01)
    table = screen.table()
    assert "epoch 3" in table
    assert "replicate 0, level 1, shuffled" in table
    assert "1 running" in table
    assert max(map(len, table.splitlines())) <= 80


def test_a_step_that_is_computed_anew_is_counted_once(screen: Screen, finished: Store) -> None:
    handle = screen.handles[0]
    published = dict(publications(finished))[handle.key]
    screen.view.tell("asked", handle)
    screen.view.tell("found", handle, published=published)
    screen.view.tell("recomputed", handle, message="weights are damaged", aside="")
    screen.view.tell("asked", handle)
    assert "0 of 8 steps done" in screen.table()
    screen.view.tell("published", handle, published=published)
    assert "1 of 8 steps done" in screen.table()


def test_a_pipe_gets_a_line_for_each_result_and_each_trouble(pipe: Screen, finished: Store) -> None:
    first, second = pipe.handles[:2]
    with pipe.view as view:
        view.tell("asked", first)
        view.tell("started", first)
        view.tell("retried", first, cause="node", message="the worker died")
        view.tell("published", first, published=dict(publications(finished))[first.key])
        view.tell("failed", second, cause="user", message="wrong", log="log")
    lines = pipe.text.getvalue().splitlines()
    assert len(lines) == 3, lines
    assert lines[0] == f"retried: {first} (node): the worker died"
    assert lines[1].startswith(f"[1/8] {first}  ")
    assert "last/accuracy 0." in lines[1]
    assert lines[2] == f"failed: {second} (user)"  # why is told at the end


@pytest.mark.parametrize("terminal", [False, True])
def test_that_another_driver_is_at_work_on_a_step_is_told_once_and_an_outage_of_the_store_once_each_time(
    plan: Plan, disk: Store, finished: Store, terminal: bool
) -> None:
    screen = Screen(plan, disk, terminal, width=200)
    first, second = screen.handles[:2]
    for handle in (first, second, first):
        screen.view.tell("waiting", handle)
        screen.view.tell("held-up", handle, message="no answer from the store")
    screen.view.tell("published", first, published=dict(publications(finished))[first.key])
    screen.view.tell("held-up", second, message="no answer again")
    lines = [line for line in screen.text.getvalue().splitlines() if not line.startswith("[1/8]")]
    assert lines == [
        f"waiting: {first}: another driver is at work on it, or was until a moment ago",
        "the store does not answer, and is asked again: no answer from the store",
        f"waiting: {second}: another driver is at work on it, or was until a moment ago",
        "the store does not answer, and is asked again: no answer again",
    ]


def test_a_line_tells_robust_accuracy_where_there_is_one_radius() -> None:
    def line(*epsilons: float) -> str:
        robust = [{"epsilon": epsilon, "accuracy": 0.5} for epsilon in epsilons]
        metrics = {"clean": {"accuracy": 0.75}, "robust": robust}
        manifest = {"task": {"kind": "evaluate"}, "metrics": metrics}
        return live.headline(Published("0" * 64, manifest, Store.open("memory://")))

    assert line(0.1) == "clean/accuracy 0.7500  robust/0.1/accuracy 0.5000"
    assert line(0.1, 0.2) == line() == "clean/accuracy 0.7500"
