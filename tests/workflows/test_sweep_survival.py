"""Whatever is killed, a sweep and a chain of any objective end with the bytes of an undisturbed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.objectives import Objective
from tests.tasks.test_objectives_in_chains import objective_of, shipped
from tests.workflows.chains import finish_under_fire, results_of, undisturbed_in

WATCHES: dict[str, Any] = {
    "robust_validation": {"attack": {"kind": "pgd", "steps": 3}, "examples": 60},
    "guard": {"attack": {"kind": "pgd", "steps": 3}, "every": 20, "examples": 60},
}
TRAIN: dict[str, Any] = {
    "data": {"kind": "mnist-mini", "validation": 200, "subset": 1500},
    "architecture": "lenet-300-100",
    "optimizer": {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9},
    "schedule": "cosine",
    "epochs": 3,
    "batch_size": 50,
}
CHAIN: dict[str, Any] = {
    "prune": {"fraction": 0.5},
    "levels": 1,
    "rewind_step": 7,
    "attacks": [{"kind": "pgd", "steps": 3}],
    "examples": 50,
}
SWEEP: dict[str, Any] = {
    "kind": "epsilon-sweep",
    "train": {
        **TRAIN,
        **WATCHES,
        "objective": {
            "kind": "awp",
            "objective": {"kind": "pgd", "epsilon": 0.1, "steps": 2, "budget": "adaptive"},
            "gamma": 0.005,
        },
    },
    "epsilons": [0.05, 0.1],
    "deltas": [0.05, 0.1],
    "replicates": 1,
    **CHAIN,
}
STEPS = 2 * (1 + 2 + 1 + 2 * (1 + 2))
"""For each radius a rewind point, two trainings, a mask and, of each network, a survey and two cells."""
FAST_SEEDS = (2680,)
"""Its kill takes the driver or everything, even where Ray is slow to start: the same command has to run again."""
SLOW_SEEDS = (1, 2, 3)


def recipe_in(folder: Path, recipe: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "chain.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder


def report_of(folder: Path) -> bytes:
    (report,) = folder.glob("out/*/results.json")
    return report.read_bytes()


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], bytes]:
    """Results and report of an undisturbed sweep."""
    folder = recipe_in(tmp_path_factory.mktemp("swept"), SWEEP)
    return undisturbed_in(folder), report_of(folder)


def require_survival(folder: Path, seed: int, swept: tuple[dict[str, Any], bytes], kills: int) -> None:
    struck = finish_under_fire(recipe_in(folder, SWEEP), seed, kills)
    assert struck, "no kill struck: the schedule tests nothing"
    results, report = swept
    assert len(results) == STEPS
    assert results_of(folder) == results
    assert report_of(folder) == report


@pytest.mark.parametrize("seed", FAST_SEEDS)
def test_a_killed_sweep_run_again_equals_an_undisturbed_one_byte_for_byte(
    seed: int, swept: tuple[dict[str, Any], bytes], tmp_path: Path
) -> None:
    require_survival(tmp_path, seed, swept, kills=1)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SLOW_SEEDS)
def test_no_kill_schedule_loses_anything_of_a_sweep(
    seed: int, swept: tuple[dict[str, Any], bytes], tmp_path: Path
) -> None:
    require_survival(tmp_path, seed, swept, kills=4)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", [kind for kind in shipped(Objective) if not objective_of(kind).taught])
def test_every_objective_survives_a_kill_in_a_real_chain(kind: str, tmp_path: Path) -> None:
    objective = objective_of(kind)
    train = {**TRAIN, **(WATCHES if objective.threat else {}), "objective": objective.model_dump(mode="json")}
    recipe = {"kind": "imp", "train": train, "controls": [], "epsilons": [0.1], **CHAIN}
    undisturbed = undisturbed_in(recipe_in(tmp_path / "undisturbed", recipe))
    killed = recipe_in(tmp_path / "killed", recipe)
    struck = finish_under_fire(killed, seed=list(shipped(Objective)).index(kind), kills=1)
    assert struck, "no kill struck: the schedule tests nothing"
    assert results_of(killed) == undisturbed
