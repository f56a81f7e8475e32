"""A small search, run in this process or by real ones that can be killed, and what it leaves to compare."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from cluster.ledger import Ledger
from cluster.runs import Run, finished_steps
from cluster.store import Store
from tests.workflows.conftest import SMALL, changed_content, drive, write_recipe
from workflows.command.recipe import Recipe, load_recipe
from workflows.search import Search

CHAIN = changed_content(
    SMALL,
    controls=[],
    train__objective={"kind": "pgd", "epsilon": 0.1, "steps": 1},
    train__data={"kind": "mnist-mini", "validation": 100, "subset": 200},
)
SEARCH: dict[str, Any] = {
    "kind": "search",
    "base": CHAIN,
    "space": {
        "parameters": {
            "levels": {"int": [1, 4]},
            "train.objective.epsilon": {"choice": [0.05, 0.1]},
        }
    },
    "objectives": [{"maximise": "robust@0.1"}, {"maximise": "sparsity"}],
    "sampler": {"kind": "tpe", "startup": 3},
    "parallel": 2,
    "budget": {"trials": 6},
}


def search_content(**changes: Any) -> dict[str, Any]:
    """The small search with other fields."""
    return {**copy.deepcopy(SEARCH), **changes}


def load_search(folder: Path, **changes: Any) -> Recipe:
    """The small search, ready to run."""
    folder.mkdir(parents=True, exist_ok=True)
    return load_recipe(str(write_recipe(folder, search_content(**changes), "small-search")))


def searched(store: Store, folder: Path, **changes: Any) -> tuple[Run, Search]:
    """The small search, run to its end in this process."""
    recipe = load_search(folder, **changes)
    run, code = drive(store, recipe, folder / "out")
    assert code == 0, run
    assert isinstance(recipe.workflow, Search)
    return run, recipe.workflow


def told(store: Store, run: Run) -> list[dict[str, Any]]:
    """What became of every trial, by number."""
    found = [dict(step.metrics) for step in finished_steps(store, run.id) if step.kind == "trial"]
    return sorted(found, key=lambda trial: trial["number"])


def fronts(store: Store, run: Run) -> list[dict[str, Any]]:
    """What the search put down when it closed, once for every budget that it was closed at."""
    return [dict(step.metrics) for step in finished_steps(store, run.id) if step.kind == "front"]


def published(store: Store) -> set[str]:
    """The keys of all finished steps of a store."""
    ledger = Ledger(store)
    keys = {path.split("/")[2] for path in store.paths("steps")}
    return {key for key in keys if ledger.find(key) is not None}
