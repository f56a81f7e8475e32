"""The guard: what it notices, what it goes back to, and that an interruption changes nothing of it."""

import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tasks.attacks.pgd import PGD as Attack  # noqa: N811 - its objective has the same name
from tasks.budgets.ramp import Ramp
from tasks.models.small_cnn import SmallCNN
from tasks.models.weights import load_weights, restore, weights_to_bytes
from tasks.moment import Moment
from tasks.objectives.awp import AWP
from tasks.objectives.fgsm import FGSM
from tasks.objectives.fgsm_rs import FGSMRS
from tasks.objectives.pgd import PGD
from tasks.optimizers.adam import Adam
from tasks.optimizers.sgd import SGD
from tasks.pruning.mask import Mask
from tasks.schedules.one_cycle import OneCycle
from tasks.seeds import seed_of
from tasks.task import Result
from tasks.training.guard import Guard
from tasks.training.loop import Diverged
from tasks.training.robust_validation import RobustValidation
from tasks.training.train import Train
from tasks.training.validation import Score, Trial
from tests.tasks.digits import DATA, right
from tests.tasks.training_toys import Finished, Tiny, Watch, half_mask, history, resumed, toy, trained

OBJECTIVE = PGD(epsilon=0.05, steps=2)


class Turncoat(PGD):
    """Adversarial training that from some step on makes mistakes likelier."""

    kind: Literal["toy-turncoat"] = "toy-turncoat"
    turns_at: int = 14

    def loss(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, moment: Moment) -> torch.Tensor:
        loss = super().loss(model, images, labels, moment)
        return loss if moment.step < self.turns_at else -loss


TURNCOAT: dict[str, Any] = {
    "objective": Turncoat(epsilon=0.02, steps=2),
    "epochs": 4,
    "guard": Guard(every=4, attack=Attack(steps=3)),
}
"""A training of 24 steps that collapses after the fourteenth."""


def test_a_collapse_ends_the_training_with_the_network_of_the_best_look(scripted: Callable[..., None]):
    scripted(0.3, 0.6, 0.5, 0.39)
    step = trained(toy(objective=OBJECTIVE, guard=Guard(every=4)))
    assert step.metrics["stopped"] == {
        "why": "catastrophic-overfitting",
        "detected_at": 16,
        "rolled_back_to": 8,
        "before": 0.6,
        "after": 0.39,
    }
    there = trained(toy(objective=OBJECTIVE, stop_at=8))
    assert step.read("weights.safetensors") == there.read("weights.safetensors")
    assert step.metrics["digest"] == there.metrics["digest"]
    assert step.metrics["last"] == there.metrics["last"]
    assert (step.metrics["step"], step.metrics["epochs"]) == (8, 8 / 6)
    assert step.metrics["sample_steps"] == 3 * (2 * 44 + 4 * 8), "what was rolled back was trained too"
    assert step.metrics["selection_steps"] == 4 * 10
    assert "optimizer.safetensors" not in step.files


def test_the_history_keeps_what_was_rolled_back_and_marks_it(scripted: Callable[..., None]):
    scripted(0.3, 0.6, 0.5, 0.39)
    entries = history(trained(toy(objective=OBJECTIVE, guard=Guard(every=4))))
    assert [(entry["step"], entry.get("rolled_back", False)) for entry in entries] == [
        (6, False), (12, True), (16, True), (8, False),
    ]  # fmt: skip
    straight = history(trained(toy(objective=OBJECTIVE)))
    assert entries[:2] == [straight[0], {**straight[1], "rolled_back": True}]
    assert set(entries[2]) == {"epoch", "step", "learning_rate", "train_loss", "sample_steps", "rolled_back"}
    assert set(entries[3]) == {"epoch", "step", "validation_accuracy", "validation_loss"}


@pytest.mark.parametrize(
    ("accuracies", "back", "found"),
    [
        ([0.3, 0.6, 0.41, 0.6, 0.5], None, None),
        ([0.5, 0.5, 0.2], 8, 12),
        ([0.7, 0.55, 0.45], 4, 12),
        ([0.1, 0.2, 0.3, 0.1, 0.09], 12, 18),
        ([0.0, 0.0, 0.0, 0.0, 0.0], None, None),
    ],
    ids=["as-far-as-allowed", "latest-of-equals", "from-the-best", "at-the-last-step", "never-rose"],
)
def test_a_fall_is_one_from_the_best_look(
    scripted: Callable[..., None], accuracies: list[float], back: int | None, found: int | None
):
    scripted(*accuracies)
    step = trained(toy(objective=OBJECTIVE, guard=Guard(every=4)))
    stopped = step.metrics.get("stopped", {})
    assert (stopped.get("rolled_back_to"), stopped.get("detected_at")) == (back, found)
    there = trained(toy(objective=OBJECTIVE, stop_at=back))
    assert step.read("weights.safetensors") == there.read("weights.safetensors")


def test_a_training_that_was_given_weights_can_go_back_to_them(scripted: Callable[..., None]):
    start = trained(toy(objective=OBJECTIVE, stop_at=7))
    scripted(0.8, 0.1)
    step = trained(toy(objective=OBJECTIVE, guard=Guard(every=100)), start=start)
    assert step.metrics["stopped"]["rolled_back_to"] == 7
    assert step.metrics["stopped"]["detected_at"] == 18
    assert step.read("weights.safetensors") == start.read("weights.safetensors")
    assert step.read("best.safetensors") == start.read("weights.safetensors")
    assert step.metrics["sample_steps"] == 3 * (3 * 44 - 44 - 8)
    scripted(0.8, 0.7, 0.5)  # at steps 7, 12 and 18: looks are counted over the whole schedule
    assert trained(toy(objective=OBJECTIVE, guard=Guard(every=12)), start=start).metrics["stopped"]["before"] == 0.8


def test_a_rewind_point_is_one_only_if_it_was_reached(scripted: Callable[..., None]):
    fields: dict[str, Any] = {"objective": OBJECTIVE, "guard": Guard(every=4), "stop_at": 10}
    scripted(0.8, 0.8, 0.1)
    fallen = trained(toy(**fields))
    assert fallen.metrics["step"] == 8
    with pytest.raises(ValueError, match="only a step with stop_at keeps it"):
        toy(rewind_optimizer=True).run(Watch(), start=fallen)
    scripted(0.8, 0.8, 0.8)
    assert "optimizer.safetensors" in trained(toy(**fields)).files


def test_the_best_network_is_not_from_after_the_collapse_began(
    scripted: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    """Clean accuracy goes on rising while robust accuracy falls."""
    clean = iter([0.5, 0.6, 0.7, 0.55])
    monkeypatch.setattr("tasks.training.run.validate", lambda *_: Score(next(clean), 0.1))
    scripted(0.3, 0.6, 0.5, 0.5, 0.1)
    step = trained(toy(objective=OBJECTIVE, epochs=4, guard=Guard(every=4)))
    assert step.metrics["stopped"]["rolled_back_to"] == 8
    assert [entry.get("validation_accuracy") for entry in history(step)] == [0.5, 0.6, 0.7, None, 0.55]
    assert (step.metrics["best"]["step"], step.metrics["best"]["accuracy"]) == (8, 0.55)
    clean = iter([0.5, 0.6, 0.7, 0.4])
    scripted(0.3, 0.6, 0.5, 0.5, 0.1)
    step = trained(toy(objective=OBJECTIVE, epochs=4, guard=Guard(every=4)))
    assert (step.metrics["best"]["step"], step.metrics["best"]["accuracy"]) == (6, 0.5)
    monkeypatch.undo()
    there = trained(toy(objective=OBJECTIVE, epochs=4, stop_at=6))
    assert step.read("best.safetensors") == there.read("weights.safetensors")


@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer": SGD(learning_rate=0.05, momentum=0.9)},
        {"architecture": Tiny(norm=True, dropout=0.2), "optimizer": Adam(learning_rate=0.02)},
        {"precision": "bf16", "channels_last": True},
    ],
    ids=["sgd", "adam-dropout-norm", "bf16-nhwc"],
)
def test_interrupted_at_any_batch_it_ends_in_the_same_bytes_through_the_rollback(fields: dict[str, Any]):
    task = toy(**TURNCOAT, robust_validation=RobustValidation(examples=20, attack=Attack(steps=3)), **fields)
    straight = task.run(Watch())
    stopped = straight.metrics["stopped"]
    assert 0 < stopped["rolled_back_to"] <= 14 < stopped["detected_at"] < 24
    for saves in range(1, stopped["detected_at"] + 1):
        assert resumed(task, [saves], {}) == straight, f"interrupted after step {saves}"
    assert resumed(task, [3, 5, 9], {}) == straight


def test_interrupted_anywhere_under_a_mask_from_a_rewind_point_it_ends_in_the_same_bytes():
    late = {**TURNCOAT, "objective": Turncoat(epsilon=0.02, steps=2, turns_at=20), "epochs": 6}
    rewind = trained(toy(**{**late, "guard": None, "stop_at": 10}))
    inputs = {"start": rewind, "mask": half_mask(rewind)}
    task = toy(**late)
    straight = task.run(Watch(), **inputs)
    stopped = straight.metrics["stopped"]
    for saves in range(1, stopped["detected_at"] - 10 + 1):
        assert resumed(task, [saves], inputs) == straight, f"interrupted after {saves} steps"
    mask = Mask.from_bytes(straight.files["mask.safetensors"])
    assert mask.density < 1
    for file in ("weights.safetensors", "best.safetensors"):
        mask.audit_weights(load_weights(straight.files[file]).kernels())


def test_the_best_network_before_the_collapse_survives_an_interruption(monkeypatch: pytest.MonkeyPatch):
    """It is neither the best of all validations nor the network that is gone back to: figures by weights say so."""
    looks, scores = iter([0.3, 0.6, 0.5, 0.5, 0.1]), iter([0.5, 0.6, 0.7, 0.4])
    of_look: dict[bytes, float] = {}
    of_validation: dict[bytes, float] = {}

    def figure(model: nn.Module, known: dict[bytes, float], left: Iterator[float]) -> float:
        weights = weights_to_bytes(model)
        if weights not in known:
            known[weights] = next(left)
        return known[weights]

    monkeypatch.setattr(Trial, "measure", lambda _, model: (figure(model, of_look, looks), 10))
    monkeypatch.setattr(
        "tasks.training.run.validate", lambda model, *_: Score(figure(model, of_validation, scores), 0.1)
    )
    task = toy(objective=OBJECTIVE, epochs=4, guard=Guard(every=4))
    straight = task.run(Watch())
    assert (straight.metrics["stopped"]["rolled_back_to"], straight.metrics["best"]["step"]) == (8, 6)
    for saves in range(1, 21):
        assert resumed(task, [saves], {}) == straight, f"interrupted after step {saves}"


def test_patience_survives_an_interruption():
    task = toy(
        objective=Turncoat(epsilon=0.02, steps=2),
        epochs=6,
        robust_validation=RobustValidation(examples=8, attack=Attack(steps=2), patience=1),
    )
    straight = task.run(Watch())
    stopped = straight.metrics["stopped"]
    assert stopped["why"] == "patience"
    assert stopped["detected_at"] < 36
    for saves in range(1, stopped["detected_at"] + 1):
        assert resumed(task, [saves], {}) == straight, f"interrupted after step {saves}"


def test_looks_see_the_network_in_full_precision(monkeypatch: pytest.MonkeyPatch):
    """What a look finds in a training in half precision is what is found of the weights outside of it."""
    found = []
    measure = Trial.measure

    def spied(self: Trial, model: nn.Module) -> tuple[float, int]:
        found.append((weights_to_bytes(model), measure(self, model)))
        assert model.training
        return found[-1][1]

    monkeypatch.setattr(Trial, "measure", spied)
    guard = Guard(every=6, attack=Attack(steps=3), epsilon=0.08)
    trained(toy(objective=OBJECTIVE, precision="bf16", guard=guard))
    assert len(found) == 3
    model = Tiny().build(toy().data.signature())
    own = Trial(guard.attack, 0.08, toy().data.load("train"), 256, model, torch.device("cpu"), seed=seed_of(0, "guard"))
    for weights, figure in found:
        restore(model, weights)
        assert measure(own, model) == figure


def test_divergence_is_not_taken_for_a_collapse():
    with pytest.raises(Diverged, match=r"has NaN or infinite values at step 3"):
        toy(
            objective=OBJECTIVE,
            optimizer=SGD(learning_rate=1e39),
            guard=Guard(every=1),
        ).run(Watch(), start=trained(toy(stop_at=3)))


@cache
def robust_start() -> Result:
    """Half of a healthy fast adversarial training, under the eyes of a guard."""
    return digits(FGSMRS(epsilon=0.2), 5e-3, guard=Guard(every=30), schedule=OneCycle(warmup=0.4), stop_at=180).run(
        Watch()
    )


def digits(objective: Any, rate: float, **fields: Any) -> Train:
    return Train(
        **{
            "data": DATA,
            "architecture": SmallCNN(),
            "objective": objective,
            "optimizer": Adam(learning_rate=rate),
            "epochs": 4,
            "batch_size": 100,
            **fields,
        }
    )


def robust_accuracy(result: Result) -> float:
    """Under PGD-40 at the radius of the training, on the first 300 test images."""
    model = SmallCNN().build(DATA.signature())
    restore(model, result.files["weights.safetensors"])
    model.eval().requires_grad_(False)
    images, labels, draws = right(model, 300)
    perturbed = Attack(steps=40).perturb(model, images, labels, 0.2, draws)
    with torch.no_grad():
        return int((model(perturbed).argmax(1) == labels).sum()) / 300


@pytest.mark.usefixtures("one_thread")
def test_a_healthy_fast_training_is_left_alone():
    result = robust_start()
    assert "stopped" not in result.metrics
    assert result.metrics["step"] == 180
    assert robust_accuracy(result) > 0.5


@pytest.mark.usefixtures("one_thread")
def test_real_catastrophic_overfitting_is_caught_and_undone():
    """One step from the image itself, which a network learns to withstand within two epochs, and nothing else."""
    start = Finished(robust_start().metrics, robust_start().files)
    fields: dict[str, Any] = {"schedule_from": "zero", "epochs": 3}
    alone = digits(FGSM(epsilon=0.2), 2e-3, **fields).run(Watch(), start=start)
    guarded = digits(FGSM(epsilon=0.2), 2e-3, **fields, guard=Guard(every=30)).run(Watch(), start=start)
    assert "stopped" not in alone.metrics
    assert alone.metrics["last"]["accuracy"] > 0.9, "clean accuracy shows nothing of it"
    assert robust_accuracy(alone) < 0.3
    assert guarded.metrics["stopped"]["why"] == "catastrophic-overfitting"
    assert guarded.metrics["stopped"]["before"] > guarded.metrics["stopped"]["after"] + 0.2
    assert robust_accuracy(guarded) > 0.55
    weights = guarded.files["weights.safetensors"]
    assert guarded.metrics["digest"] == hashlib.sha256(weights).hexdigest()


def test_a_restarted_budget_under_guard_is_refused() -> None:
    """Radii begin small again on robust weights: what they lose then is no collapse."""
    grows = PGD(epsilon=0.1, budget=Ramp())
    with pytest.raises(ValidationError, match="guard: with schedule_from: zero and a budget that begins small"):
        toy(objective=grows, guard=Guard(), schedule_from="zero")
    with pytest.raises(ValidationError, match="guard: with schedule_from: zero"):
        toy(objective=AWP(objective=grows), guard=Guard(), schedule_from="zero")
    assert toy(objective=PGD(epsilon=0.1), guard=Guard(), schedule_from="zero")
    assert toy(objective=grows, guard=Guard())
