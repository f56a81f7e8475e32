"""Training in several processes: one step, one result, whatever happens to them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tasks.data.mnist_mini import MnistMini
from tasks.models.lenet import LeNet300100
from tasks.models.weights import load_weights
from tasks.objectives.awp import AWP
from tasks.objectives.fgsm import FGSM
from tasks.objectives.pgd import PGD
from tasks.optimizers.adam import Adam
from tasks.optimizers.sgd import SGD
from tasks.pruning.mask import Mask
from tasks.pruning.sparsifiers.admm import ADMM
from tasks.pruning.sparsifiers.gradual import Gradual
from tasks.task import Result
from tasks.training.guard import Guard
from tasks.training.robust_validation import RobustValidation
from tests.tasks import teams
from tests.tasks.teams import Astray, Pair, Raised, Troubled
from tests.tasks.training_toys import Tiny, Watch, Witness, half_mask, toy, trained

pytestmark = pytest.mark.usefixtures("one_thread")

ATTACKED = PGD(epsilon=0.1, steps=2)
EVERYTHING = {"architecture": Tiny(dropout=0.5, norm=True), "augmentation": "crop-flip", "objective": ATTACKED}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two processes for all tests that leave them alive."""
    made = Pair(tmp_path_factory.mktemp("pair"))
    yield made
    made.close()


def weights(result: Result) -> dict[str, torch.Tensor]:
    return dict(load_weights(result.files["weights.safetensors"]).tensors)


def furthest(one: Result, other: Result) -> float:
    """The largest difference between two weights."""
    ours, theirs = weights(one), weights(other)
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"batch_size": 7},
        {"batch_size": 7, "objective": FGSM(epsilon=0.1)},
        {"batch_size": 7, "objective": AWP(objective=FGSM(epsilon=0.1), gamma=0.1)},
        {"batch_size": 7, "sparsifier": ADMM(density=0.5, rho=0.1)},
        {"batch_size": 7, "sparsifier": Gradual(density=0.3, every=2)},
        {"optimizer": SGD(learning_rate=0.05, momentum=0.9, weight_decay=0.01), "augmentation": "crop-flip"},
    ],
    ids=["even", "uneven", "attacked", "awp", "admm", "gradual", "augmented"],
)
def test_two_processes_come_to_the_weights_of_one(pair: Pair, fields: dict[str, Any]):
    """Parts of 3 and 4 of a batch of 7, and a last batch of 2, tell a weighted mean from one of means."""
    alone = toy(**fields).run(Watch())
    together = pair(teams.train, toy(**fields, world_size=2))
    assert furthest(alone, together) < 1e-5
    assert furthest(alone, toy(**fields, seed=1).run(Watch())) > 1e-3, "for this to mean anything"
    assert together.metrics["sample_steps"] == alone.metrics["sample_steps"]
    ours, theirs = (
        [json.loads(line)["train_loss"] for line in each.files["history.jsonl"].splitlines()]
        for each in (together, alone)
    )
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_the_same_examples_in_the_same_order_and_noise_of_its_own_for_each_process(pair: Pair):
    task = toy(objective=Witness(), batch_size=7)
    Witness.seen.clear()
    task.run(Watch())
    whole = [(images.numpy(), labels.tolist()) for images, labels, *_ in Witness.seen]
    Witness.seen.clear()
    first, second = pair.all(teams.witness, task.model_copy(update={"world_size": 2}))
    assert len(first) == len(second) == len(whole)
    for (images, labels), one, other in zip(whole, first, second, strict=True):
        assert one[1] + other[1] == labels
        assert np.array_equal(np.concatenate([one[0], other[0]]), images)
    drawn = [value for step in (*first, *second) for value in step[2:]]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("fields", [EVERYTHING, {"optimizer": Adam(learning_rate=0.01), "batch_size": 7}])
def test_two_runs_and_any_interruption_end_in_the_same_bytes(pair: Pair, fields: dict[str, Any]):
    task = toy(**fields, world_size=2)
    straight = pair(teams.train, task)
    assert pair(teams.train, task) == straight
    for saves in (1, 6, 8, 17):
        (left, state), (follows, _) = pair.all(teams.save, task, saves)
        assert left == follows == "left", "all leave at one step"
        assert pair(teams.train, task, None, state) == straight, f"interrupted after step {saves}"
    assert pair(teams.train, toy(**fields, seed=1, world_size=2)) != straight


def test_a_killed_process_ends_the_attempt_and_costs_no_bit(pair: Pair, tmp_path: Path):
    task = toy(objective=Troubled(at=9, flag=str(tmp_path / "killed")), world_size=2)
    victims = Pair(tmp_path)
    (ended, message, state), nothing = victims.all(teams.keep, task)
    victims.close()
    assert ended == "lost"
    assert "another process of this training is gone" in message
    assert nothing is None
    assert victims.processes[1].exitcode == -9
    assert state is not None
    assert pair(teams.train, task, None, state) == pair(teams.train, task)


def test_a_shorter_training_is_gone_on_from(pair: Pair):
    task = toy(**EVERYTHING, world_size=2)
    short = pair(teams.train, task.model_copy(update={"stop_at": 8}))
    straight = pair(teams.train, task)
    assert pair(teams.train, task, None, short.files["progress.state"]) == straight


def test_masks_hold(pair: Pair):
    start = trained(toy(stop_at=4))
    inputs = {"start": start, "mask": half_mask(start)}
    result = pair(teams.train, toy(objective=ATTACKED, world_size=2), inputs)
    Mask.from_bytes(result.files["mask.safetensors"]).audit_weights(
        load_weights(result.files["weights.safetensors"]).kernels()
    )
    alone = toy(rewind_optimizer=True).run(Watch(), **inputs)
    assert furthest(alone, pair(teams.train, toy(rewind_optimizer=True, world_size=2), inputs)) < 1e-5


def test_batch_norm_learns_the_mean_of_the_whole_batch(pair: Pair):
    task = toy(architecture=Tiny(norm=True), batch_size=7, stop_at=1)
    alone, together = weights(task.run(Watch())), weights(pair(teams.train, task.model_copy(update={"world_size": 2})))
    name = next(name for name in alone if name.endswith("running_mean"))
    assert torch.allclose(alone[name], together[name], atol=1e-6)
    assert alone[name].abs().max() > 1e-3
    counted = next(name for name in alone if name.endswith("num_batches_tracked"))
    assert alone[counted] == together[counted] == 1


@pytest.mark.parametrize(
    "watch",
    [
        {},
        {"robust_validation": RobustValidation(patience=1), "epochs": 5},
        {"guard": Guard(every=4, drop=0.05), "epochs": 5},
    ],
    ids=["validation", "patience", "guard"],
)
def test_the_first_process_alone_looks_and_decides(pair: Pair, watch: dict[str, Any]):
    task = toy(objective=ATTACKED, world_size=2, **watch)
    assert pair(teams.look_alone, task) == pair(teams.train, task)


def test_a_process_that_goes_astray_is_found(pair: Pair):
    for answer in pair.all(teams.train, toy(objective=Astray(at=8), world_size=2)):
        assert isinstance(answer, Raised)
        assert answer.name == "RuntimeError"
        assert "after step 12 the states of processes 1 are not that of process 0" in answer.message


def test_attacked_training_on_digits_is_as_robust_in_two_processes_as_in_one(pair: Pair):
    task = toy(
        data=MnistMini(validation=1000),
        architecture=LeNet300100(),
        objective=PGD(epsilon=0.1, steps=3),
        optimizer=Adam(learning_rate=0.0012),
        batch_size=60,
        epochs=2,
        robust_validation=RobustValidation(examples=500),
    )
    alone, together = (
        found.metrics["last"]
        for found in (task.run(Watch()), pair(teams.train, task.model_copy(update={"world_size": 2})))
    )
    assert alone["robust_accuracy"] > 0.6
    assert abs(together["robust_accuracy"] - alone["robust_accuracy"]) < 0.05
    assert abs(together["accuracy"] - alone["accuracy"]) < 0.03


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"objective": {"kind": "free", "epsilon": 0.1}}, "world_size: free remembers from step to step"),
        ({"objective": {"kind": "pgd", "epsilon": 0.1, "budget": "per-example"}}, "world_size: pgd remembers"),
        ({"objective": {"kind": "pgd", "epsilon": 0.1, "budget": "adaptive"}}, "world_size: pgd remembers"),
        ({"batch_size": 1}, "world_size: a batch of 1 has no part for each of 2"),
        ({"gpus": 0.5}, "gpus: 0.5 for each of 2 processes; allowed: 0, 1"),
        ({"world_size": 0}, "greater than or equal to 1"),
    ],
    ids=["free", "per-example", "adaptive", "batch", "gpus", "none"],
)
def test_what_does_not_fit_is_refused_by_validation(fields: dict[str, Any], says: str):
    with pytest.raises(ValidationError, match=says):
        toy(**{"world_size": 2, **fields})


def test_a_process_alone_and_a_batch_too_small_are_refused(pair: Pair):
    with pytest.raises(ValueError, match="world_size is 2, but this process trains with 0 others"):
        toy(world_size=2).run(Watch())
    with pytest.raises(Raised, match="the last batch of an epoch has 1 examples, too few for 2 parts"):
        pair(teams.train, toy(world_size=2, batch_size=43))


def test_one_process_is_what_it_always_was():
    assert "world_size" not in toy().identity()
    assert toy(world_size=2).identity() == {**toy().identity(), "world_size": 2}
