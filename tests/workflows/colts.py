"""A small COLT run without Ray, and what to look for in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.runs import Finished, finished_steps
from cluster.store import Store
from tasks.pruning.mask import Mask
from tests.workflows.conftest import changed_content, drive, write_recipe
from workflows.command.recipe import Recipe, load_recipe

SMALL: dict[str, Any] = {
    "kind": "colt",
    "train": {
        "data": {"kind": "mnist-mini", "validation": 100, "subset": 400},
        "architecture": "lenet-300-100",
        "optimizer": {"kind": "adam", "learning_rate": 0.003},
        "epochs": 2,
        "batch_size": 20,
    },
    "prune": {"fraction": 0.3, "output_layer": "exclude"},
    "sparsity": 0.7,
    "transfer": [
        {
            "kind": "mnist-mini",
            "validation": 100,
            "subset": 400,
            "partition": {"kind": "class-ranges", "parts": 2, "index": 1},
        }
    ],
    "attacks": ["fgsm"],
    "epsilons": [0.05],
    "examples": 100,
}


def content(**changes: Any) -> dict[str, Any]:
    """The recipe with other fields, those of `train` by the dotted path `train.…`."""
    return changed_content(SMALL, **changes)


def recipe(folder: Path, **changes: Any) -> Recipe:
    folder.mkdir(exist_ok=True)
    return load_recipe(str(write_recipe(folder, content(**changes), "colt")))


def run_colt(folder: Path, **changes: Any) -> list[Finished]:
    """The finished steps of a run on the store of a folder."""
    store = Store.open(str(folder / "store"))
    run, code = drive(store, recipe(folder, **changes), folder / "out")
    assert code == 0, run
    return finished_steps(store, run.id)


def pick(finished: list[Finished], kind: str, **at: Any) -> Finished:
    """The one step of a kind at a place of the first replicate."""
    (found,) = [step for step in finished if step.kind == kind and dict(step.at) == {"replicate": 0, **at}]
    return found


def mask_of(step: Finished) -> Mask:
    return Mask.from_bytes(step.step.read("mask.safetensors"))
