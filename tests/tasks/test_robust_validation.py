"""Robust validation: what it measures, what it chooses, when it stops, and that it changes nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tasks.attacks.apgd import APGD
from tasks.attacks.autoattack import AutoAttack
from tasks.attacks.bpda import BPDA
from tasks.attacks.draws import Draws
from tasks.attacks.pgd import PGD as Attack  # noqa: N811 - its objective has the same name
from tasks.attacks.transfer import Transfer
from tasks.data import Examples
from tasks.models.initialise import initialise
from tasks.models.weights import restore
from tasks.objectives.pgd import PGD
from tasks.seeds import seed_of
from tasks.training import validation
from tasks.training.guard import Guard
from tasks.training.robust_validation import RobustValidation
from tasks.training.validation import Trial
from tests.tasks.training_toys import Blobs, Tiny, Watch, half_mask, history, toy, trained

OBJECTIVE = PGD(epsilon=0.05, steps=2)
CPU = torch.device("cpu")


def test_the_best_network_is_the_most_robust_and_the_earliest_of_equals(scripted: Callable[..., None]):
    scripted(0.3, 0.5, 0.6, 0.6, 0.2)
    step = trained(toy(objective=OBJECTIVE, epochs=5, robust_validation=RobustValidation()))
    clean = [entry["validation_accuracy"] for entry in history(step)]
    assert max(clean) > clean[2], "the most accurate network must be another one for this to mean anything"
    best = step.metrics["best"]
    assert (best["step"], best["epoch"], best["robust_accuracy"], best["accuracy"]) == (18, 3, 0.6, clean[2])
    assert step.metrics["last"]["robust_accuracy"] == 0.2
    assert [entry["validation_robust_accuracy"] for entry in history(step)] == [0.3, 0.5, 0.6, 0.6, 0.2]
    there = trained(toy(objective=OBJECTIVE, epochs=5, stop_at=18))
    assert step.read("best.safetensors") == there.read("weights.safetensors")
    assert "stopped" not in step.metrics


@pytest.mark.parametrize(
    ("patience", "every", "accuracies", "end"),
    [
        (2, 1, [0.3, 0.6, 0.6, 0.5], 24),
        (3, 1, [0.6, 0.5, 0.5, 0.7, 0.1, 0.1, 0.7], 42),
        (1, 1, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], None),
        (1, 2, [0.5, 0.4], 24),
        (1, 1, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.1], None),
        (None, 1, [0.8, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], None),
    ],
    ids=["equal-is-not-better", "a-better-one-counts-anew", "rising", "validations-not-epochs", "at-the-end", "none"],
)
def test_patience_ends_a_training_when_it_should_and_not_before(
    scripted: Callable[..., None], patience: int | None, every: int, accuracies: list[float], end: int | None
):
    scripted(*accuracies)
    fields: dict[str, Any] = {"objective": OBJECTIVE, "epochs": 8, "validate_every": every}
    step = trained(toy(**fields, robust_validation=RobustValidation(patience=patience)))
    assert step.metrics.get("stopped") == (end and {"why": "patience", "detected_at": end})
    assert step.metrics["step"] == step.metrics["last"]["step"] == (end or 48)
    assert step.metrics["last"]["robust_accuracy"] == accuracies[-1]
    assert step.metrics["best"]["robust_accuracy"] == max(accuracies)
    assert step.metrics["sample_steps"] == (end or 48) // 6 * 44 * 3
    assert step.metrics["selection_steps"] == 10 * len(accuracies)
    there = trained(toy(**fields, stop_at=end))
    assert step.read("weights.safetensors") == there.read("weights.safetensors")


def test_a_rewind_point_that_patience_kept_from_being_reached_has_no_slots(scripted: Callable[..., None]):
    scripted(0.5, 0.4, 0.3)
    fields: dict[str, Any] = {"objective": OBJECTIVE, "robust_validation": RobustValidation(patience=1)}
    early = trained(toy(**fields, stop_at=15))
    assert early.metrics["stopped"]["detected_at"] == 12
    assert "optimizer.safetensors" not in early.files
    scripted(0.5, 0.6, 0.7)
    assert "optimizer.safetensors" in trained(toy(**fields, stop_at=15)).files


@pytest.mark.parametrize("fields", [{}, {"precision": "bf16"}, {"channels_last": True}], ids=["fp32", "bf16", "nhwc"])
def test_robust_accuracy_is_that_of_the_stored_weights_in_full_precision(fields: dict[str, Any]):
    """Against an attack written out by hand, with the same noise."""
    architecture = Tiny(norm=True, dropout=0.3)
    task = toy(
        objective=OBJECTIVE, architecture=architecture, epochs=6, seed=3, robust_validation=RobustValidation(), **fields
    )
    step = trained(task)
    examples = Blobs().load("validation")
    images, labels = examples.images.float() / 255, examples.labels
    draws = Draws(seed_of(seed_of(3, "robust-validation"), "attack", "0-pgd"), torch.arange(40))
    for file, score in (("weights.safetensors", "last"), ("best.safetensors", "best")):
        model = initialise(architecture, Blobs().signature(), 5).eval()
        restore(model, step.read(file))
        right = model(images).argmax(1) == labels
        perturbed = Attack(steps=10).perturb(model, images, labels, 0.05, draws)
        stands = right & (model(perturbed).argmax(1) == labels)
        assert 0 < stands.sum() < right.sum(), "the attack must break some for this to mean anything"
        assert step.metrics[score]["robust_accuracy"] == stands.double().mean().item()


def trial(attack: Any, epsilon: float, model: nn.Module, examples: Examples | None = None, count: int | None = None):
    return Trial(attack, epsilon, examples or Blobs().load("validation"), count, model, CPU, seed=1)


def fresh(**fields: Any) -> nn.Module:
    model = initialise(Tiny(**fields), Blobs().signature(), 0)
    restore(model, trained(toy(architecture=Tiny(**fields), epochs=5)).read("weights.safetensors"))
    return model


def test_measuring_leaves_the_network_and_the_global_generator_alone():
    model = fresh(norm=True, dropout=0.5).train()
    model.body[1].eval()
    model.body[0].weight.grad = torch.ones_like(model.body[0].weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    watched = trial(Attack(steps=3), 0.05, model)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = watched.measure(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert (model.body[0].weight.grad == 1).all()
    assert sum(parameter.grad is not None for parameter in model.parameters()) == 1
    torch.manual_seed(6)
    assert watched.measure(model) == first, "the same network has the same figure"


def test_what_is_wrong_without_attack_is_wrong_and_every_image_is_counted():
    model = fresh()
    examples = Blobs().load("validation")
    right = int((model.eval()(examples.images.float() / 255).argmax(1) == examples.labels).sum())
    assert 20 < right < 40
    # Nothing falls at so small a radius: four iterates are looked at, and what comes back once more.
    accuracy, images = trial(Attack(steps=3), 1e-7, model).measure(model)
    assert (accuracy, images) == (right / 40, 40 + 5 * right)
    assert trial(Attack(steps=3), 0.5, model).measure(model)[0] < 0.2


def test_a_trial_follows_the_network_and_counts_answers_that_are_no_numbers_as_wrong():
    model = fresh()
    watched = trial(Attack(steps=3), 1e-7, model)
    assert watched.measure(model)[0] > 0.5
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    assert watched.measure(model) == (0.0, 40)


def test_examples_are_drawn_evenly_over_the_classes():
    class Always(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.eye(4)[0].expand(len(images), -1) + 0 * images.sum()

    order = Blobs().load("validation")
    by_class = order.labels.argsort(stable=True)
    examples = Examples(order.images[by_class], order.labels[by_class])
    assert trial(Attack(steps=1), 0.1, Always(), examples, count=8).measure(Always())[0] == 1 / 4
    assert trial(Attack(steps=1), 0.1, Always(), examples, count=4).measure(Always())[1] == 4 + 1 * 3


def test_an_ensemble_meets_what_its_first_attacks_left():
    model = fresh()
    alone = trial(Attack(steps=2), 0.03, model).measure(model)
    both = trial(AutoAttack(), 0.03, model).measure(model)
    assert both[0] <= alone[0]
    assert both[1] > alone[1]


@pytest.mark.parametrize(
    "fields",
    [
        {"architecture": Tiny(dropout=0.5, norm=True)},
        {"precision": "fp16", "channels_last": True},
        {"stop_at": 15},
    ],
    ids=["dropout-norm", "fp16-nhwc", "rewind"],
)
def test_being_watched_changes_no_weight(fields: dict[str, Any]):
    plain = trained(toy(objective=OBJECTIVE, **fields))
    watched = trained(
        toy(objective=OBJECTIVE, robust_validation=RobustValidation(), guard=Guard(every=2, drop=0.9), **fields)
    )
    for file in plain.files.keys() - {"history.jsonl", "best.safetensors", "progress.state"}:
        assert watched.read(file) == plain.read(file), file
    shared = [
        {name: value for name, value in entry.items() if name != "validation_robust_accuracy"}
        for entry in history(watched)
    ]
    assert shared == history(plain)


def test_under_a_mask_the_best_network_is_as_sparse_as_the_last():
    mask = half_mask(trained(toy(stop_at=0)))
    step = trained(toy(objective=OBJECTIVE, robust_validation=RobustValidation(examples=20)), mask=mask)
    assert step.metrics["density"] < 1
    assert step.metrics["best"]["robust_accuracy"] is not None


def test_an_ordinary_training_reports_what_it_always_did_and_keeps_its_name():
    step = trained(toy(objective=OBJECTIVE))
    assert set(step.metrics) == {
        "step", "epochs", "last", "best", "sample_steps", "density", "parameters", "digest",
    }  # fmt: skip
    assert set(step.metrics["last"]) == set(step.metrics["best"]) == {"accuracy", "loss", "step", "epoch"}
    assert set(history(step)[0]) == {
        "epoch", "step", "learning_rate", "train_loss", "sample_steps", "validation_accuracy", "validation_loss",
    }  # fmt: skip
    assert not {"robust_validation", "guard"} & set(toy(objective=OBJECTIVE).identity())
    watched = toy(objective=OBJECTIVE, robust_validation={"patience": 2}, guard={})
    attack = Attack(steps=10).identity()  # its version is not the first: it is named, though it is the default
    assert watched.identity()["robust_validation"] == {"kind": "robust-validation", "patience": 2, "attack": attack}
    assert watched.identity()["guard"] == {"kind": "guard", "attack": attack}


@pytest.mark.parametrize("name", ["robust_validation", "guard"])
@pytest.mark.parametrize(
    ("fields", "watch", "complaint"),
    [
        ({}, {}, "give epsilon: objective `standard` trains against no attack"),
        ({"objective": OBJECTIVE}, {"attack": Attack(norm="l2")}, "is l2, but that of the objective is linf"),
        ({}, {"epsilon": 1.5}, "epsilon is 1.5, but images lie in"),
        ({"objective": OBJECTIVE}, {"attack": Transfer(source="other")}, "takes images from another network"),
        ({"objective": OBJECTIVE}, {"epsilon": 0}, "greater than 0"),
        ({"objective": OBJECTIVE}, {"examples": 0}, "greater than or equal to 1"),
        ({"objective": OBJECTIVE}, {"drops": 0.1}, "unknown field"),
    ],
    ids=["no-epsilon", "norm", "radius", "transfer", "zero", "examples", "typo"],
)
def test_what_cannot_be_measured_is_refused(name: str, fields: dict[str, Any], watch: dict[str, Any], complaint: str):
    with pytest.raises(ValidationError, match=f"{name}.*\n?.*{complaint}"):
        toy(**fields, **{name: watch})


def test_the_radius_is_the_largest_of_the_objective_unless_given():
    assert validation.radius_of(Attack(), None, OBJECTIVE) == 0.05
    assert validation.radius_of(Attack(), 0.02, OBJECTIVE) == 0.02
    assert validation.radius_of(Attack(), 0.02, toy().objective) == 0.02
    small, large = (
        trained(toy(epochs=2, robust_validation=RobustValidation(epsilon=epsilon))).metrics["last"]["robust_accuracy"]
        for epsilon in (1e-4, 0.3)
    )
    assert small > large


@pytest.mark.parametrize("name", ["robust_validation", "guard"])
def test_an_attack_that_does_not_fit_the_network_is_refused_before_it_trains(name: str):
    watch = {"attack": BPDA(attack=APGD(), through=("quantise",))}
    with pytest.raises(ValueError, match="the network has no module 'quantise'"):
        toy(objective=OBJECTIVE, **{name: watch}).run(Watch(saves=1))
