"""What cannot be swept is one line before any work starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.store import Store
from tests.workflows.sweeps import recipe
from workflows.command.launch import plan_of
from workflows.command.recipe import BadRequest

CHAIN: dict[str, Any] = {"prune": {"fraction": 0.5}, "levels": 1}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epsilons": []}, "epsilons must not be empty"),
        ({"epsilons": [0.1, 0.05]}, "epsilons must rise, but 0.1 is followed by 0.05"),
        ({"epsilons": [0.1, 0.1]}, "epsilons must rise, but 0.1 is followed by 0.1"),
        ({"epsilons": [-0.1, 0.1]}, "epsilons.0: .*greater than or equal to 0"),
        ({"epsilons": [0.1, 1.5]}, "train.objective: epsilon is 1.5, but images lie in .0, 1.: at most 1 in norm linf"),
        ({"deltas": []}, "deltas must not be empty"),
        ({"deltas": [0.2, 0.1]}, "deltas must rise, but 0.2 is followed by 0.1"),
        ({"deltas": [0, 0.1]}, "deltas.0: .*greater than 0"),
        ({"deltas": [0.1, 1.2]}, "deltas: 1.2 is more than any two images differ by in norm linf: at most 1"),
        ({"attacks": []}, "attacks must not be empty"),
        (
            {"attacks": [{"kind": "pgd", "norm": "l2"}]},
            "attacks.0: attacks in norm l2, but train.objective trains in norm linf: a matrix of radii needs one norm",
        ),
        (
            {"train__objective": {"kind": "fgsm-rs", "epsilon": 0.1, "norm": "l2"}},
            "train.objective: fgsm-rs attacks in norm linf, not l2",
        ),
        ({"train__objective": "standard"}, "train.objective: objective `standard` has no epsilon"),
        ({"attacks": [{"kind": "transfer", "source": "x"}]}, "attacks.0: a transfer takes images from another network"),
        ({"masks": {"m": "abcd"}, **CHAIN}, "give masks or prune"),
        ({"masks": {"m": "abcd", "n": "abcd"}}, "masks: abcd is there twice"),
        ({"masks": {"m": 1234}}, "masks.m: .*put the key in quotes"),
        ({"masks": {"m": "abcd"}}, "masks.m: .*abcd"),
        ({"weights": []}, "weights must not be empty"),
        ({"weights": ["last", "last"]}, "weights: last is there twice"),
        ({"every": 2}, "every chooses levels of a pruning chain and needs prune"),
        ({"train__stop_at": 0}, "train.stop_at: a sweep attacks finished networks"),
        ({"train__data": {"kind": "mnist-mini", "validation": 0}}, "train.data: the validation split is empty"),
        (
            {"train__objective": {"kind": "grad-align", "epsilon": 0.1}, "train__compile": True},
            "train: .*compile: grad-align needs second derivatives",
        ),
        ({"levels": 2}, "levels and sparsity need prune"),
        ({"examples": 100_000}, r"examples is 100000, but the test split holds"),
        ({"precision": {"after": ["nowhere"], "steps": [0.1], "delta": 0.1}}, "precision: .*nowhere"),
        ({"precision": {"after": ["hidden1"], "steps": [0.2, 0.1], "delta": 0.1}}, "steps must rise"),
        ({"sensitivity": 1.5}, "sensitivity: .*1.5"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_mistake_is_one_line(changes: dict[str, Any], words: str, disk: Store, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=words) as refusal:
        plan_of(recipe(tmp_path, **changes), disk)
    assert "\n" not in str(refusal.value)
