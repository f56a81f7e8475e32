"""Searches beside brute force: every combination of a small space is computed once into a store that all share.

The space is how often to prune, what radius to train against and how much a level removes: the deeper chains contain
the shallower, and all of one radius begin with the same dense network. A search is as good as the hypervolume that its
trials dominate, as a share of what all combinations dominate. It is counted from the worst of each figure in the table,
which is harsher than from zero.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from cluster.runs import finished_steps
from cluster.store import Store
from tests.workflows.conftest import changed_content
from tests.workflows.searches import CHAIN, fronts, searched, told

Point = tuple[float, ...]

FIGURES = ("robust@0.1", "sparsity")
QUICK = {"kind": "sgd", "learning_rate": 0.1, "momentum": 0.9}
SMALLER = changed_content(
    CHAIN,
    examples=50,
    attacks=[{"kind": "pgd", "steps": 3}],
    train__data={"kind": "mnist-mini", "validation": 100, "subset": 300},
    train__objective={"kind": "fgsm-rs", "epsilon": 0.1},
    train__optimizer=QUICK,
    train__epochs=2,
    train__batch_size=20,
)
LARGER = changed_content(
    SMALLER,
    examples=500,
    attacks=[{"kind": "pgd", "steps": 5}],
    train__data={"kind": "mnist-mini", "validation": 1000, "subset": 3000},
    train__epochs=5,
    train__batch_size=50,
)

SAMPLERS = {"gp": {"kind": "gp", "startup": 5}, "tpe": "tpe", "nsga2": "nsga2", "random": "random"}


def table_of(base: dict[str, Any], levels: int, radius: float, fraction: float) -> dict[str, Any]:
    """A space of levels from 1, radii from 0.05 in steps of that, and fractions up to 0.7; and what it varies."""
    parameters = {
        "levels": {"int": [1, levels]},
        "train.objective.epsilon": {"float": [0.05, radius], "step": 0.05},
        "prune.fraction": {"float": [fraction, 0.7], "step": 0.2},
    }
    return {"base": base, "space": {"parameters": parameters}}


SMALL_TABLE = table_of(SMALLER, levels=3, radius=0.15, fraction=0.5)
"""18 combinations."""
TABLE = table_of(LARGER, levels=5, radius=0.2, fraction=0.3)
"""60 combinations."""


def points(trials: Iterable[Mapping[str, Any]]) -> list[Point]:
    """The objectives of trials."""
    return [tuple(trial["figures"][name] for name in FIGURES) for trial in trials]


def best(found: Sequence[Point]) -> set[Point]:
    """Those that no other is better than, found by comparing all with all."""
    return {
        point
        for point in found
        if not any(other != point and all(a >= b for a, b in zip(other, point, strict=True)) for other in found)
    }


def hypervolume(found: Sequence[Point], worst: Point) -> float:
    """The area that points dominate down to the worst one."""
    area, height = 0.0, worst[1]
    for x, y in sorted(best(found), reverse=True):
        area += (x - worst[0]) * (y - height)
        height = y
    return area


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[dict[str, Any]], dict[str, Any]]:
    """A store with every combination of the small table, and what its grid search put down."""
    folder = tmp_path_factory.mktemp("table")
    store = Store.open(str(folder / "store"))
    run, _ = searched(store, folder, **SMALL_TABLE, sampler="grid", budget={"trials": 18})
    return store, told(store, run), fronts(store, run)[0]


def test_a_grid_tries_every_combination_and_its_front_is_that_of_brute_force(small: Any) -> None:
    _, trials, closed = small
    assert len({tuple(sorted(trial["parameters"].items())) for trial in trials}) == 18
    assert set(points(closed["front"])) == best(points(trials))
    assert len(closed["front"]) > 1


@pytest.mark.parametrize("sampler", ["random", {"kind": "tpe", "startup": 3}, {"kind": "gp", "startup": 3}])
def test_a_search_over_what_is_stored_trains_nothing_and_finds_what_the_table_says(
    sampler: Any, small: Any, tmp_path: Path
) -> None:
    store, table, _ = small
    known = {tuple(sorted(trial["parameters"].items())): trial["figures"] for trial in table}
    keys = {key for trial in table for key in trial["steps"]}
    run, _ = searched(store, tmp_path, **SMALL_TABLE, sampler=sampler, budget={"trials": 6})
    trials = told(store, run)
    steps = finished_steps(store, run.id)
    assert {step.step.key for step in steps if step.kind in ("train", "prune")} <= keys
    assert {step.at.get("split") for step in steps if step.step.key not in keys} <= {None, "test"}
    assert len(trials) == 6
    for trial in trials:
        assert trial["figures"] == known[tuple(sorted(trial["parameters"].items()))]
    assert set(points(fronts(store, run)[0]["front"])) == best(points(trials))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_third_of_the_trials_come_within_5_percent_of_the_true_hypervolume(tmp_path: Path) -> None:
    """Holds for the Gaussian process that begins with five trials at random and knows each result before the next ask.

    Twenty trials are few: TPE and NSGA-II, whose first ten or twenty are drawn at random, are shown beside it.
    """
    store = Store.open(str(tmp_path / "store"))
    run, _ = searched(store, tmp_path, **TABLE, sampler="grid", budget={"trials": 60})
    table = points(told(store, run))
    worst: Point = tuple(map(min, zip(*table, strict=True)))
    whole = hypervolume(table, worst)
    shares: dict[str, list[float]] = {}
    for name, sampler in SAMPLERS.items():
        for seed in range(5):
            budget = {"trials": len(table) // 3}
            run, _ = searched(store, tmp_path, **TABLE, sampler=sampler, budget=budget, parallel=1, seed=seed)
            share = hypervolume(points(told(store, run)), worst) / whole
            shares.setdefault(name, []).append(share)
    for name, found in shares.items():
        sys.stdout.write(f"\n{name}: {', '.join(f'{share:.3f}' for share in found)}; mean {mean(found):.3f}")
    assert len(table) == 60
    assert min(shares["gp"]) >= 0.95
    assert mean(shares["gp"]) > mean(shares["random"])
