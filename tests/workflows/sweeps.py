"""A small epsilon sweep, and what to look for in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.workflows.conftest import changed_content, write_recipe
from workflows.command.recipe import Recipe, load_recipe

TRAIN: dict[str, Any] = {
    "data": {"kind": "mnist-mini", "validation": 100, "subset": 300},
    "architecture": "lenet-300-100",
    "objective": {"kind": "fgsm-rs", "epsilon": 0.1},
    "optimizer": {"kind": "sgd", "learning_rate": 0.1},
    "epochs": 2,
    "batch_size": 20,
}
SMALL: dict[str, Any] = {
    "kind": "epsilon-sweep",
    "train": TRAIN,
    "epsilons": [0, 0.05, 0.1],
    "deltas": [0.03, 0.05, 0.1],
    "attacks": [{"kind": "pgd", "steps": 3}],
    "examples": 40,
}


def content(**changes: Any) -> dict[str, Any]:
    """The recipe with other fields, those of `train` by the dotted path `train.…`."""
    return changed_content(SMALL, **changes)


def recipe(folder: Path, **changes: Any) -> Recipe:
    folder.mkdir(exist_ok=True)
    return load_recipe(str(write_recipe(folder, content(**changes), "sweep")))
