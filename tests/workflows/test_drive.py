"""What a driver does with what a workflow meets on its way, with signals, and with a store that is none."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from rich.console import Console

from cluster.flow import Flow
from cluster.placement import GB
from cluster.runs import events_of
from cluster.store import Store
from tasks.measuring.merge import MergeOutcomes
from tests.workflows.conftest import Inline, record_run, write_recipe
from workflows.command import driver as driving
from workflows.command import launch as launching
from workflows.command.driver import Driver
from workflows.command.exit_codes import Exit
from workflows.command.launch import launch, open_store
from workflows.command.options import Options
from workflows.command.recipe import BadRequest, load_recipe
from workflows.command.signals import stoppable
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
    driver = Driver(recipe, disk, Inline(), Options(disk.url, tmp_path), run)
    assert asyncio.run(driver.drive()) == Exit.FAILED
    assert driver.problems == lines
    ended = [event for event in events_of(disk, run.id) if event.get("state") == "ended"]
    assert ended[-1]["code"] == Exit.FAILED


class Unconditional:
    """A store's backend that takes a conditional put for a plain one, as some servers do."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def put(self, path: str, data: bytes, mode: str = "overwrite") -> None:
        self._inner.put(path, data)


def test_a_store_that_ignores_conditional_puts_is_refused_in_one_line(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(open_store(disk.url, to_run=True).paths("")) == []
    monkeypatch.setattr(Store, "open", lambda url, make: Store(url, Unconditional(disk._backend)))
    with pytest.raises(BadRequest) as refused:
        open_store(disk.url, to_run=True)
    assert "both were told that they won" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(disk.paths("")) == []
    open_store(disk.url)  # to look is fine


class Stuck(Inline):
    """Attempts that never end, on a store that never answers again; signals come once the first has begun."""

    def __init__(self, signals: list[tuple[float, signal.Signals]], over: threading.Event) -> None:
        super().__init__()
        self._signals, self._over = signals, over
        self.killed: list[float] = []

    def submit(self, order: Any) -> Any:
        loop = asyncio.get_running_loop()
        if self._signals:
            for after, number in self._signals:
                loop.call_later(after, signal.raise_signal, number)
            self._signals, self.began = [], time.monotonic()
            loop.run_in_executor(None, self._over.wait)
        return loop.create_future()

    def kill(self, running: Any) -> None:
        self.killed.append(time.monotonic() - self.began)


def no_ray(shutdown: Callable[[], None] = lambda: None) -> Callable[..., contextlib.AbstractContextManager[Any]]:
    """A session of a Ray that has nothing and starts nothing."""

    @contextlib.contextmanager
    def session(*address: Any, **named: Any) -> Iterator[Any]:
        yield SimpleNamespace(cluster_resources=dict, nodes=list, shutdown=shutdown)

    return session


class Noting(Inline):
    """Runs attempts, and notes the memory that was asked for with each kind of step."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[str, int] = {}

    def submit(self, order: Any) -> Any:
        self.memory[order.task.kind] = order.needs.memory
        return super().submit(order)


def test_what_is_said_of_places_reaches_the_steps_that_it_is_for(
    tmp_path: Path, disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    noting = Noting()
    monkeypatch.setattr(launching, "session", no_ray())
    monkeypatch.setattr(launching, "RayExecutor", lambda ray: noting)
    options = Options(disk.url, tmp_path / "out", wandb="disabled", place=["train:memory=2", "memory=1"])
    ended = launch(load_recipe(str(write_recipe(tmp_path))), options, Console(quiet=True))
    assert (ended.code, ended.problems) == (Exit.DONE, [])
    assert noting.memory == {kind: 2 * GB if kind == "train" else GB for kind in noting.memory}
    assert noting.memory.keys() == {"train", "evaluate", "prune", "shuffle-mask"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_second_signal_ends_everything_at_once_and_says_how_to_go_on(
    tmp_path: Path, disk: Store, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    said: list[str] = []
    left: list[bool] = []
    over = threading.Event()
    stuck = Stuck([(0.0, number), (0.02, number), (0.5, number)], over)
    monkeypatch.setattr(driving, "ECHO", 0.25)
    monkeypatch.setattr(launching, "session", no_ray(lambda: left.append(True)))
    monkeypatch.setattr(launching, "RayExecutor", lambda ray: stuck)
    monkeypatch.setattr(launching, "abandon", lambda: left.append(True))
    recipe = load_recipe(str(write_recipe(tmp_path)))
    began = time.monotonic()
    try:
        with pytest.raises(typer.Exit) as end, stoppable(said.append) as stop_if_asked:
            launch(recipe, Options(disk.url, tmp_path / "out", wandb="disabled"), Console(quiet=True), stop_if_asked)
    finally:
        over.set()
    assert end.value.exit_code == code
    assert min(stuck.killed) > 0.3  # and not at the first one's echo
    assert left == [True, True]
    assert time.monotonic() - began < 5  # the farewell alone takes ten seconds
    assert len(said) == 1
    assert said[0].startswith("to go on: hedgerow")
