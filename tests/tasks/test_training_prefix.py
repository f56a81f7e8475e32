"""A training that goes on from where a shorter one ended: to the very bytes of one that began at its beginning."""

import hashlib
from typing import Any

import pytest
import torch

from tasks.budgets.adaptive import Adaptive
from tasks.budgets.per_example import PerExample
from tasks.models.weights import weights_to_bytes
from tasks.objectives.awp import AWP
from tasks.objectives.free import Free
from tasks.objectives.pgd import PGD
from tasks.optimizers.adam import Adam
from tasks.optimizers.sgd import SGD
from tasks.schedules.one_cycle import OneCycle
from tasks.seeds import seed_of
from tasks.training import checkpoint
from tasks.training.guard import Guard
from tasks.training.robust_validation import RobustValidation
from tasks.training.train import Train
from tasks.training.validation import Trial
from tests.tasks.training_toys import Interrupted, Loud, Tiny, Watch, Witness, half_mask, resumed, toy, trained

ATTACKED = PGD(epsilon=0.05, steps=2)
ENDS = (1, 4, 6, 12, 13, 17)
"""Steps at which shorter trainings end: in the middle of epochs of six batches, at their ends, one before the last."""


def left_by(task: Train, k: int, **inputs: Any) -> bytes:
    """What the same training leaves that ends after `k` steps."""
    return trained(task.model_copy(update={"stop_at": k}), **inputs).read("progress.state")


def by_weights_alone(self: Trial, model: torch.nn.Module) -> tuple[float, int]:
    """Accuracies that jump about, the same whenever the same network is looked at."""
    digest = hashlib.sha256(weights_to_bytes(model)).hexdigest()
    return seed_of(digest) % 1000 / 1000, 10


@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer": SGD(learning_rate=0.05, momentum=0.9, weight_decay=1e-3), "schedule": OneCycle()},
        {"optimizer": Adam(learning_rate=0.01), "channels_last": True},
        {"architecture": Tiny(dropout=0.5, norm=True), "augmentation": "crop-flip"},
        {"objective": AWP(objective=PGD(epsilon=0.1, steps=2, budget=Adaptive(eta=50)), warmup=0.4)},
        {"objective": PGD(epsilon=0.1, steps=2, budget=PerExample(growth=0.4))},
        {"objective": Free(epsilon=0.1, replay=4)},
        {"precision": "fp16", "objective": Loud(), "optimizer": SGD(learning_rate=0.0025, momentum=0.9)},
        {"validate_every": 2},
        {"objective": ATTACKED, "guard": Guard(every=5, drop=0.9), "validate_every": 2},
        {"objective": ATTACKED, "robust_validation": RobustValidation(), "architecture": Tiny(dropout=0.5, norm=True)},
    ],
    ids=[
        "momentum", "adam", "dropout-norm", "awp-adaptive", "per-example", "free", "fp16", "validated-less", "guarded",
        "validated-robustly",
    ],
)  # fmt: skip
def test_going_on_from_a_shorter_training_changes_no_byte(fields: dict[str, Any]):
    task = toy(**fields)
    straight = task.run(Watch())
    for k in ENDS:
        left = left_by(task, k)
        torch.manual_seed(k)
        assert task.run(Watch(left)) == straight, f"after {k} steps"


@pytest.mark.parametrize("seed", range(2))
def test_a_shorter_training_hides_no_collapse_and_no_end_of_patience(monkeypatch: pytest.MonkeyPatch, seed: int):
    """Only at its own last step does it look, validate and shrug off what would end a longer one."""
    monkeypatch.setattr(Trial, "measure", by_weights_alone)
    for watch in (
        {"guard": Guard(every=4, drop=0.3)},
        {"robust_validation": RobustValidation(patience=1)},
        {"guard": Guard(every=3, drop=0.5), "robust_validation": RobustValidation(patience=2), "validate_every": 2},
    ):
        task = toy(objective=ATTACKED, epochs=5, seed=seed, **watch)
        straight = task.run(Watch())
        assert "guard" in watch or "stopped" in straight.metrics, "for this to mean anything"
        for k in range(1, 30):
            assert task.run(Watch(left_by(task, k))) == straight, f"{watch}, after {k} steps"


def test_a_sparse_training_from_a_rewind_point_goes_on_too():
    dense = trained(toy(optimizer=Adam(learning_rate=0.01), stop_at=4))
    inputs = {"start": dense, "mask": half_mask(dense)}
    task = toy(optimizer=Adam(learning_rate=0.01), rewind_optimizer=True, guard=Guard(every=5, epsilon=0.05))
    straight = task.run(Watch(), **inputs)
    for k in (5, 9, 12, 17):
        assert task.run(Watch(left_by(task, k, **inputs)), **inputs) == straight, f"after {k} steps"


def test_a_rewind_point_goes_on_from_an_earlier_one_and_leaves_the_same():
    task = toy(architecture=Tiny(norm=True), stop_at=15)
    straight = task.run(Watch())
    assert "progress.state" in straight.files
    for k in (2, 6, 14):
        assert task.run(Watch(left_by(task, k))) == straight


def test_interruptions_before_and_after_change_nothing():
    task = toy(optimizer=Adam(learning_rate=0.01), validate_every=2)
    short = task.model_copy(update={"stop_at": 9})
    left = left_by(task, 9)
    for saves in range(1, 10):
        assert resumed(short, [saves], {}).files["progress.state"] == left, f"interrupted after {saves} steps"
    straight = task.run(Watch())
    for saves in range(1, 11):
        watch = Watch(left, saves)
        with pytest.raises(Interrupted):
            task.run(watch)
        assert task.run(Watch(watch.state)) == straight, f"interrupted after {saves} saves"


def test_no_step_is_taken_twice():
    task = toy(objective=Witness())
    left = left_by(task, 10)
    Witness.seen.clear()
    task.run(Watch(left))
    assert len(Witness.seen) == 8
    Witness.seen.clear()


def test_only_a_rewind_point_within_the_schedule_leaves_its_state():
    assert "progress.state" in trained(toy(stop_at=1)).files
    for fields in ({}, {"stop_at": 0}, {"stop_at": 18}):
        assert "progress.state" not in trained(toy(**fields)).files


def test_what_a_shorter_training_leaves_is_the_same_in_every_order_of_slots():
    """A file of slots gives them back in any order; the state that is left must not tell."""
    optimizer = Adam(learning_rate=0.01)
    start = trained(toy(optimizer=optimizer, stop_at=4))
    task = toy(optimizer=optimizer, stop_at=9, rewind_optimizer=True)
    assert len({task.run(Watch(), start=start).files["progress.state"] for _ in range(4)}) == 1


@pytest.mark.parametrize("early", [False, True], ids=["at-its-end", "out-of-patience"])
def test_what_another_version_left_is_not_gone_on_from(monkeypatch: pytest.MonkeyPatch, early: bool):
    monkeypatch.setattr(Trial, "measure", by_weights_alone)
    task = toy(objective=ATTACKED, epochs=5, robust_validation=RobustValidation(patience=1) if early else None)
    straight = task.run(Watch())
    with monkeypatch.context() as older:
        older.setattr(checkpoint, "FORMAT", 0)
        left = left_by(task, 29)
    assert task.run(Watch(left)) == straight


def test_the_longer_training_reports_what_it_costs_alone():
    task = toy()
    cost = task.run(Watch(left_by(task, 10))).metrics["sample_steps"]
    assert cost == trained(task).metrics["sample_steps"] == 3 * 44
