"""A small recipe, and a store in which it has been run without Ray."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.order import Order, Outcome
from cluster.placement import Machine
from cluster.runs import Run, write_plan
from cluster.store import Store
from cluster.worker import run_step
from workflows.command.driver import Driver
from workflows.command.launch import plan_of, run_id_of
from workflows.command.options import Options
from workflows.command.recipe import Recipe, load_recipe

SMALL: dict[str, Any] = {
    "kind": "imp",
    "train": {
        "data": {"kind": "mnist-mini", "validation": 100, "subset": 200},
        "architecture": "lenet-300-100",
        "optimizer": {"kind": "sgd", "learning_rate": 0.05},
        "epochs": 1,
        "batch_size": 50,
    },
    "prune": {"fraction": 0.5},
    "levels": 1,
    "controls": ["shuffled"],
    "attacks": ["fgsm"],
    "epsilons": [0.1],
    "examples": 20,
}


class Inline:
    """Runs attempts one after another in a thread of this process: no Ray to start."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)

    def submit(self, order: Order) -> Any:
        return asyncio.get_running_loop().run_in_executor(self._thread, run_step, order)

    async def outcome(self, running: Any) -> Outcome:
        outcome: Outcome = await running
        return outcome

    def draining(self) -> frozenset[str]:
        return frozenset()

    def machines(self) -> tuple[Machine, ...]:
        return ()

    def kill(self, running: Any) -> None:
        running.cancel()


def write_recipe(folder: Path, content: Any = SMALL, name: str = "small") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def changed_content(content: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A recipe with other fields, those of its `train` as `train__…`."""
    made = {**content, "train": dict(content["train"])}
    for name, value in changes.items():
        if name.startswith("train__"):
            made["train"][name.removeprefix("train__")] = value
        else:
            made[name] = value
    return made


def record_run(store: Store, recipe: Recipe) -> Run:
    """A run as it stands when it was planned and nothing has started."""
    recipe_record = {"name": recipe.name, "recipe": recipe.workflow.model_dump(mode="json"), "command": "hedgerow run"}
    run = Run.open(store, run_id_of(recipe), recipe_record)
    write_plan(store, run.id, plan_of(recipe, store).records())
    return run


def drive(store: Store, recipe: Recipe, out: Path) -> tuple[Run, int]:
    """Runs a recipe to its end in this process."""
    run = record_run(store, recipe)
    driver = Driver(recipe, store, Inline(), Options(store.url, out), run)
    return run, asyncio.run(driver.drive())


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared data of these tests go to a folder of their own, and no surroundings leak in."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HEDGEROW_CACHE", str(tmp_path_factory.mktemp("cache")))
        environment.delenv("HEDGEROW_STORE", raising=False)
        environment.delenv("HEDGEROW_DATA", raising=False)
        yield


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store with one finished run of the small recipe; not to be changed."""
    folder = tmp_path_factory.mktemp("small")
    run, code = drive(Store.open(str(folder / "store")), load_recipe(str(write_recipe(folder))), folder / "out")
    assert code == 0, run
    return folder / "store"


@pytest.fixture
def finished(small_run: Path, tmp_path: Path) -> Store:
    """A store of one's own with that run."""
    return Store.open(str(shutil.copytree(small_run, tmp_path / "finished")))


@pytest.fixture
def disk(tmp_path: Path) -> Store:
    """An empty store in a folder."""
    return Store.open(str(tmp_path / "store"))
