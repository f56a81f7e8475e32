"""A small evaluation of two networks, and what to look for in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.flow import describe
from cluster.ledger import Published
from cluster.runs import Finished, finished_steps
from cluster.store import Store
from tasks.measuring.outcomes import FILE, Outcomes
from tests.workflows.conftest import record_run, write_recipe
from workflows.command.launch import plan_of
from workflows.command.recipe import Recipe, load_recipe

TRAIN: dict[str, Any] = {
    "kind": "train",
    "data": {"kind": "mnist-mini", "validation": 100, "subset": 300},
    "architecture": "lenet-300-100",
    "optimizer": {"kind": "sgd", "learning_rate": 0.1},
    "epochs": 2,
    "batch_size": 20,
}
SMALL: dict[str, Any] = {
    "kind": "evaluate",
    "models": {"one": TRAIN, "two": {**TRAIN, "init_seed": 1}},
    "attacks": ["fgsm", {"kind": "transfer", "source": "one", "steps": 3}],
    "epsilons": [0.02, 0.05],
    "examples": 40,
    "shard_size": 16,
    "corruptions": ["brightness", "contrast"],
    "severities": [1, 5],
    "calibrate": True,
}


def recipe(folder: Path, **changes: Any) -> Recipe:
    return load_recipe(str(write_recipe(folder, {**SMALL, **changes}, "small")))


def steps_of(folder: Path, store: Store) -> list[Finished]:
    return finished_steps(store, record_run(store, recipe(folder)).id)


def of_kind(steps: list[Finished], kind: str) -> dict[str, Published]:
    return {describe(step.at): step.step for step in steps if step.kind == kind}


def outcomes(step: Published) -> Outcomes:
    return Outcomes.from_bytes(step.read(FILE))


def planned(store: Store, made: Recipe) -> dict[str, Any]:
    """The handles of a plan by kind and place."""
    return {f"{step.handle.task.kind} {describe(step.handle.at)}": step.handle for step in plan_of(made, store).steps}


def key_of_training(folder: Path, model: str = "one") -> str:
    return of_kind(steps_of(folder, Store.open(str(folder / "store"))), "train")[model].key


def stored(folder: Path, tmp_path: Path, **fields: Any) -> Recipe:
    model = {"kind": "stored", "step": key_of_training(folder)[:12], **fields}
    return recipe(tmp_path, models={"mine": model}, attacks=["fgsm"], corruptions=[], calibrate=False)
