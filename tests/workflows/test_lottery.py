"""The lottery claim: a ticket beats its mask on other initial weights, and that beats the mask shuffled."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from safetensors.torch import load

from cluster.runs import Finished, finished_steps
from cluster.store import Store
from tests.workflows.conftest import drive, write_recipe
from workflows.command.recipe import load_recipe

MNIST = os.environ.get("HEDGEROW_DATA")  # now, because the fixtures of this folder take it out of the environment
HIDDEN, OUTPUT = 784 * 300 + 300 * 100, 100 * 10
"""Prunable weights of LeNet-300-100 on MNIST."""

PUBLISHED: dict[str, Any] = {
    "kind": "imp",
    "train": {
        "architecture": "lenet-300-100",
        "initialiser": "xavier-normal",
        "optimizer": {"kind": "adam", "learning_rate": 0.0012},
        "batch_size": 60,
    },
    "prune": {"output_layer": "half"},
    "replicates": 2,
}
"""What Frankle & Carbin 2019 train, without its length."""


def lottery(folder: Path, data: Mapping[str, Any], epochs: int, fraction: float, levels: int) -> list[Finished]:
    """The finished steps of the workflow, its controls measured at the last level."""
    content = {
        **PUBLISHED,
        "train": {**PUBLISHED["train"], "data": dict(data), "epochs": epochs},
        "prune": {**PUBLISHED["prune"], "fraction": fraction},
        "levels": levels,
        "control_every": levels,
    }
    store = Store.open(str(folder / "store"))
    run, code = drive(store, load_recipe(str(write_recipe(folder, content))), folder / "out")
    assert code == 0
    return finished_steps(store, run.id)


def pick(finished: Sequence[Finished], kind: str, **at: Any) -> Finished:
    """The one step of a kind at a place."""
    (found,) = [step for step in finished if step.kind == kind and dict(step.at) == at]
    return found


def accuracies(finished: Sequence[Finished], levels: int) -> dict[str, list[float]]:
    """Test accuracy of every replicate in percent: dense, and each arm at the last level."""
    places: dict[str, dict[str, Any]] = {
        "dense": {"level": 0},
        "ticket": {"level": levels},
        "reinit": {"level": levels, "control": "reinit"},
        "shuffled": {"level": levels, "control": "shuffled"},
    }
    replicates = sorted({step.at["replicate"] for step in finished})
    return {
        arm: [
            100 * pick(finished, "evaluate", replicate=replicate, **at).metrics["clean"]["accuracy"]
            for replicate in replicates
        ]
        for arm, at in places.items()
    }


def require_exact_sparsity(finished: Sequence[Finished], fraction: float, levels: int) -> None:
    """Every mask keeps the count worked out here, lies in the one before, and rules the weights trained under it."""
    share = Fraction(str(fraction))
    for replicate in range(PUBLISHED["replicates"]):
        hidden, output, before = HIDDEN, OUTPUT, None
        for level in range(levels + 1):
            trained = pick(finished, "train", replicate=replicate, level=level)
            weights = load(trained.step.read("weights.safetensors"))
            if level == 0:
                assert trained.step.manifest["files"].keys().isdisjoint({"mask.safetensors"})
            else:
                hidden, output = hidden - round(share * hidden), output - round(share / 2 * output)
                mask = load(pick(finished, "prune", replicate=replicate, level=level - 1).step.read("mask.safetensors"))
                assert sum(int(layer.sum()) for layer in mask.values()) == hidden + output
                assert int(mask["body.output.weight"].sum()) == output
                assert before is None or all(bool((before[name] | ~mask[name]).all()) for name in mask)
                require_dead(weights, mask)
                before = mask
        assert before is not None
        for control in ("reinit", "shuffled"):
            arm = pick(finished, "train", replicate=replicate, level=levels, control=control).step
            own = load(arm.read("mask.safetensors"))
            assert {name: int(layer.sum()) for name, layer in own.items()} == {
                name: int(layer.sum()) for name, layer in before.items()
            }
            assert all(torch.equal(own[name], before[name]) for name in own) == (control == "reinit")
            require_dead(load(arm.read("weights.safetensors")), own)


def require_dead(weights: Mapping[str, torch.Tensor], mask: Mapping[str, torch.Tensor]) -> None:
    """Pruned weights are zero, and those kept have been trained."""
    for name, layer in mask.items():
        assert not weights[name][~layer].any(), f"{name}: pruned weights are alive"
        assert int((weights[name][layer] == 0).sum()) <= 1


def require_one_start(finished: Sequence[Finished], levels: int) -> None:
    """Every ticket is the dense training again, under a mask; a reinit differs in its initial weights alone."""
    for replicate in range(PUBLISHED["replicates"]):
        dense = pick(finished, "train", replicate=replicate, level=0).step.manifest
        assert not dense["inputs"]
        for level in range(1, levels + 1):
            ticket = pick(finished, "train", replicate=replicate, level=level).step.manifest
            assert ticket["task"] == dense["task"]
            assert ticket["inputs"].keys() == {"mask"}
        reinit = pick(finished, "train", replicate=replicate, level=levels, control="reinit").step.manifest
        differing = {name for name, value in reinit["task"].items() if dense["task"].get(name) != value}
        assert differing == {"init_seed"}
        assert reinit["inputs"] == ticket["inputs"]


def test_tickets_of_a_small_mnist_beat_their_controls(tmp_path: Path) -> None:
    """Three epochs a level, 1.6 % of the weights left; ticket and controls, two replicates.

    Measured with six pairs of seeds, in points: ticket over reinit 2.9 to 3.8, reinit over shuffled 2.8 to 4.4. Both
    gaps with masks that are not enforced -0.4 and 0.4, other initial weights at every level -0.3 and 3.6, random masks
    1.1 and -1.2, the largest weights pruned -17 and -1.9, masks not shuffled 3.3 and -3.3.
    """
    fraction, levels = 0.65, 4
    data = {"kind": "mnist-mini", "validation": 100, "subset": 6000}
    finished = lottery(tmp_path, data, epochs=3, fraction=fraction, levels=levels)
    require_exact_sparsity(finished, fraction, levels)
    require_one_start(finished, levels)
    found = accuracies(finished, levels)
    assert mean(found["dense"]) >= 92, found
    assert mean(found["ticket"]) - mean(found["reinit"]) >= 1.8, found
    assert mean(found["reinit"]) - mean(found["shuffled"]) >= 1.5, found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not MNIST, reason="needs HEDGEROW_DATA, a folder with MNIST")
def test_tickets_of_mnist_at_a_28th_of_their_weights_match_the_dense_network(tmp_path: Path) -> None:
    """Frankle & Carbin 2019, Fig. 1 and 4, with fewer examples and steps: 15 levels of 20 %, 3.6 % of the weights left.

    Measured on all 10,000 test images, accuracy in percent:

    - as here, 12,000 training examples, two replicates: dense 95.7, ticket 96.5, reinit 94.8, shuffled 92.5; with two
      other seeds 95.5, 96.6, 94.8, 92.7. Two to four minutes.
    - with all 55,000, one replicate: dense 97.7, ticket 98.3, reinit 97.3, shuffled 96.1. There the gap to reinit is
      only a point.
    """
    fraction, levels = 0.2, 15
    data = {"kind": "mnist", "root": MNIST, "subset": 12000}
    finished = lottery(tmp_path, data, epochs=8, fraction=fraction, levels=levels)
    require_exact_sparsity(finished, fraction, levels)
    require_one_start(finished, levels)
    density = pick(finished, "train", replicate=0, level=levels).metrics["density"]
    assert math.isclose(density, 0.0358, abs_tol=1e-4)
    found = accuracies(finished, levels)
    assert mean(found["ticket"]) >= mean(found["dense"]) - 1.0, found
    assert mean(found["ticket"]) - mean(found["reinit"]) >= 1.5, found
    assert mean(found["reinit"]) - mean(found["shuffled"]) >= 1.0, found
