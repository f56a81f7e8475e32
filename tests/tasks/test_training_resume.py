"""Exactness: interrupted anywhere, training ends with the same bytes."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from tasks.budgets.adaptive import Adaptive
from tasks.budgets.per_example import PerExample
from tasks.component import members
from tasks.data.augmentation import Augmentation
from tasks.models.weights import load_tensors, load_weights
from tasks.objectives.free import Free
from tasks.objectives.pgd import PGD
from tasks.optimizers.adam import Adam
from tasks.optimizers.adamw import AdamW
from tasks.optimizers.sgd import SGD
from tasks.schedules.one_cycle import OneCycle
from tasks.training import checkpoint
from tests.tasks.training_toys import Finished, Interrupted, Loud, Tiny, Watch, half_mask, resumed, toy, trained

SGD_MOMENTUM = SGD(learning_rate=0.05, momentum=0.9, weight_decay=1e-3)
QUIET = SGD(learning_rate=0.0025, momentum=0.9)


@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer": SGD_MOMENTUM},
        {"optimizer": SGD(learning_rate=0.05, momentum=0.9, nesterov=True), "schedule": OneCycle()},
        {"optimizer": Adam(learning_rate=0.01)},
        {"optimizer": AdamW(learning_rate=0.01)},
        {"architecture": Tiny(dropout=0.5, norm=True)},
        {"objective": PGD(epsilon=0.1, steps=3), "architecture": Tiny(norm=True)},
        {"augmentation": "crop-flip"},
        {"precision": "bf16"},
        {"precision": "fp16", "objective": Loud(), "optimizer": QUIET},
        {"channels_last": True, "optimizer": Adam(learning_rate=0.01)},
        {"validate_every": 2},
    ],
    ids=lambda fields: "-".join(map(str, fields.values()))[:40] if isinstance(fields, dict) else None,
)
def test_resumed_training_is_bit_identical_at_every_batch(fields: dict[str, Any]):
    task = toy(**fields)
    straight = task.run(Watch())
    for saves in range(1, 19):
        assert resumed(task, [saves], {}) == straight, f"interrupted after step {saves}"


@pytest.mark.parametrize("optimizer", [SGD_MOMENTUM, Adam(learning_rate=0.01, weight_decay=1e-3)], ids=["sgd", "adam"])
def test_resumed_training_under_a_mask_from_a_rewind_point_is_bit_identical(optimizer: Any):
    rewind = trained(toy(optimizer=optimizer, stop_at=4))
    inputs = {"start": rewind, "mask": half_mask(rewind)}
    task = toy(optimizer=optimizer, stop_at=16, rewind_optimizer=True)
    straight = task.run(Watch(), **inputs)
    for saves in range(1, 13):
        assert resumed(task, [saves], inputs) == straight, f"interrupted after {saves} steps"


def test_interruptions_add_up_to_nothing():
    task = toy(architecture=Tiny(dropout=0.5, norm=True))
    assert resumed(task, [1, 3, 1, 2, 6, 4], {}) == task.run(Watch())


def test_what_is_compared_can_differ():
    assert toy().run(Watch()) != toy(seed=1).run(Watch())
    assert toy(architecture=Tiny(dropout=0.5)).run(Watch()) != toy(architecture=Tiny(dropout=0.5), seed=1).run(Watch())


@pytest.mark.parametrize("k", [1, 4, 6, 13])
@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer": SGD(learning_rate=0.05)},
        {"optimizer": SGD_MOMENTUM, "rewind_optimizer": True},
        {"optimizer": Adam(learning_rate=0.01), "rewind_optimizer": True, "schedule": OneCycle()},
        {"optimizer": AdamW(learning_rate=0.01), "rewind_optimizer": True, "channels_last": True},
        {"optimizer": QUIET, "rewind_optimizer": True, "precision": "fp16", "objective": Loud()},
        {"optimizer": SGD(learning_rate=0.05), "architecture": Tiny(dropout=0.5, norm=True)},
        {"optimizer": SGD(learning_rate=0.05), "objective": Free(epsilon=0.1, replay=4)},
        {"optimizer": SGD(learning_rate=0.05), "objective": PGD(epsilon=0.1, steps=2, budget=Adaptive(eta=50))},
        {"optimizer": SGD(learning_rate=0.05), "objective": PGD(epsilon=0.1, steps=2, budget=PerExample(growth=0.4))},
    ],
    ids=["sgd", "momentum", "adam", "adamw-channels-last", "fp16", "dropout-norm", "free", "adaptive", "per-example"],
)
def test_stopping_and_going_on_is_training_straight_through(k: int, fields: dict[str, Any]):
    straight = trained(toy(**fields))
    there = trained(toy(**{**fields, "stop_at": k}))
    assert there.metrics["step"] == k
    onward = trained(toy(**fields), start=there)
    assert onward.read("weights.safetensors") == straight.read("weights.safetensors")
    assert onward.metrics["last"] == straight.metrics["last"]


def test_a_fresh_optimizer_is_not_a_rewound_one():
    rewind = trained(toy(stop_at=4))
    fresh, rewound = trained(toy(), start=rewind), trained(toy(rewind_optimizer=True), start=rewind)
    assert fresh.metrics["digest"] != rewound.metrics["digest"]


def test_another_process_computes_the_same_bytes():
    program = (
        "import json, torch; torch.rand(7)\n"
        "from tests.tasks.training_toys import Tiny, toy, trained\n"
        "print(json.dumps(trained(toy(architecture=Tiny(dropout=0.5, norm=True))).metrics))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    output = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True
    )
    here = trained(toy(architecture=Tiny(dropout=0.5, norm=True))).metrics
    assert json.loads(output.stdout) == here


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    toy(architecture=Tiny(dropout=0.5), objective=PGD(epsilon=0.1, steps=2)).run(Watch())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_state_of_another_format_is_refused(monkeypatch: pytest.MonkeyPatch):
    watch = Watch(saves=2)
    monkeypatch.setattr(checkpoint, "FORMAT", 0)
    with pytest.raises(Interrupted):
        toy().run(watch)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has format 0, this hedgerow reads format 4"):
        toy().run(Watch(watch.state))


def test_half_precision_finds_its_scale_in_the_toy():
    """The loss must overflow at the first scale, or the two tests above would not miss the scale."""
    rewind = load_tensors(
        trained(toy(precision="fp16", objective=Loud(), optimizer=QUIET, stop_at=4)).read("optimizer.safetensors")
    )
    assert rewind["scaler/scale"] < 2**16


def test_the_best_network_survives_an_interruption():
    task = toy(optimizer=SGD(learning_rate=0.4, momentum=0.9), epochs=6)
    straight = trained(task)
    best = straight.metrics["best"]
    assert best["step"] < 36, "the toy must peak early for this to mean anything"
    result = resumed(task, [best["step"] + 1], {})
    assert Finished(result.metrics, result.files).read("best.safetensors") == straight.read("best.safetensors")
    assert load_weights(result.files["best.safetensors"]).tensors.keys()


def test_augmentation_is_a_family_with_members():
    assert {"none", "crop-flip"} <= set(members(Augmentation))


def test_replayed_examples_are_counted_each_time():
    """Batches of an epoch hold 8 examples, the last one 4; each is seen four times in a row."""
    replayed = trained(toy(objective=Free(epsilon=0.1, replay=4)))
    assert replayed.metrics["sample_steps"] == 4 * 8 * 4 + 2 * 8  # 18 steps: four batches, and half of the fifth
    through = trained(toy(objective=Free(epsilon=0.1, replay=4), epochs=4))
    assert through.metrics["sample_steps"] == 4 * 44
