"""Searches whose driver is killed end as if nothing had happened."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

from cluster.runs import all_runs
from cluster.store import Store
from tests.workflows.chains import Family
from tests.workflows.conftest import write_recipe
from tests.workflows.searches import fronts, published, search_content, told

SEEDS = range(10)


def command(folder: Path, *extra: str) -> list[str]:
    recipe = folder / "small-search.yaml"
    if not recipe.exists():
        write_recipe(folder, killed_content(), "small-search")
    common = ["--store", str(folder / "store"), "--out", str(folder / "out"), "--wandb", "disabled"]
    return [sys.executable, "-m", "workflows.command.cli", "search", str(recipe), *common, "--workers", "2", *extra]


def killed_content() -> dict[str, Any]:
    stopping = {"kind": "dominated", "field": "levels", "rungs": [1, 2], "warm_up": 2, "audit": 1}
    return search_content(budget={"trials": 8}, parallel=3, stopping=stopping)


def run_to_the_end(folder: Path) -> None:
    """In a process of its own: a study holds the versions of all tasks there are, and here are those of other tests."""
    completed = subprocess.run(command(folder), capture_output=True, text=True, timeout=250, cwd=folder)
    assert completed.returncode == 0, completed.stdout + completed.stderr


def left_by(folder: Path) -> dict[str, Any]:
    """What a search leaves: its trials, its front, the steps that were computed, and the Optuna study."""
    store = Store.open(str(folder / "store"))
    (run,) = all_runs(store)
    return {
        "trials": told(store, run),
        "front": fronts(store, run),
        "steps": published(store),
        "study": shown(f"sqlite:///{folder}/out/{run.id}/study.db", run.id),
    }


def shown(url: str, name: str) -> list[Any]:
    import optuna

    study = optuna.load_study(study_name=name, storage=url)
    return [(trial.number, trial.state, trial.values, trial.params, trial.user_attrs) for trial in study.trials]


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The folder of an undisturbed search, not to be changed, and the seconds that it took."""
    folder, began = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
    run_to_the_end(folder)
    return folder, time.monotonic() - began


@pytest.fixture(scope="module")
def finished(timed: tuple[Path, float]) -> Path:
    return timed[0]


@pytest.fixture(scope="module")
def undisturbed(finished: Path) -> dict[str, Any]:
    return left_by(finished)


def kill_the_driver(folder: Path, after: float) -> bool:
    """Starts the search and kills its driver; says whether it was still at work."""
    process = subprocess.Popen(
        command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, start_new_session=True
    )
    family = Family(process.pid)
    due = time.monotonic() + after
    while process.poll() is None and time.monotonic() < due:
        time.sleep(0.02)
        family.look()
    struck = process.poll() is None
    if struck:
        process.kill()
    process.wait()
    for member in family.members:
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            os.kill(member.pid, signal.SIGKILL)
    return struck


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=[pytest.mark.slow] if seed else []) for seed in SEEDS])
def test_a_search_whose_driver_is_killed_ends_as_an_undisturbed_one(
    seed: int, tmp_path: Path, timed: tuple[Path, float], undisturbed: dict[str, Any]
) -> None:
    random, whole = Random(seed), timed[1]
    assert kill_the_driver(tmp_path, whole * random.uniform(0.3, 0.85))
    if seed:
        kill_the_driver(tmp_path, whole * random.uniform(0.3, 0.6))
    run_to_the_end(tmp_path)
    assert left_by(tmp_path) == undisturbed


def test_two_drivers_on_one_study_tell_every_trial_once(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    drivers = [
        subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path)
        for _ in range(2)
    ]
    said = [driver.communicate(timeout=280)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    assert left_by(tmp_path) == undisturbed


def test_a_study_file_that_is_lost_is_made_anew_from_the_ledger(
    tmp_path: Path, finished: Path, undisturbed: dict[str, Any]
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (study,) = (tmp_path / "out").glob("*/study.db")
    study.unlink()
    run_to_the_end(tmp_path)
    assert left_by(tmp_path) == undisturbed
    study.write_bytes(study.read_bytes()[: study.stat().st_size // 2])
    run_to_the_end(tmp_path)
    assert left_by(tmp_path) == undisturbed
