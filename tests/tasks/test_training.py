"""The training task: rewinding, masks, seeds, what it reports and what it refuses."""

import hashlib
import json
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load
from torch import optim

from tasks.data.batches import in_order
from tasks.models.initialise import initialise
from tasks.models.weights import load_weights, restore
from tasks.objectives.pgd import PGD
from tasks.objectives.trades import TRADES
from tasks.optimizers.adam import Adam
from tasks.optimizers.adamw import AdamW
from tasks.optimizers.sgd import SGD
from tasks.pruning.mask import Mask
from tasks.schedules.cosine import Cosine
from tasks.schedules.step import Step
from tasks.training.loop import Diverged
from tasks.training.train import Train
from tasks.training.validation import Score, validate
from tests.tasks.training_toys import (
    BATCHES,
    Blobs,
    Finished,
    Loud,
    Tiny,
    Watch,
    Witness,
    half_mask,
    history,
    toy,
    trained,
)


@pytest.fixture(autouse=True)
def _forget():
    Witness.seen.clear()


def same(left: Finished, right: Finished) -> bool:
    return left.read("weights.safetensors") == right.read("weights.safetensors")


def test_training_learns_and_reports_what_it_did():
    step = trained(toy(epochs=10))
    metrics = step.metrics
    assert metrics["last"]["accuracy"] > 0.9
    assert (metrics["step"], metrics["epochs"], metrics["last"]["epoch"]) == (60, 10, 10)
    assert metrics["sample_steps"] == 10 * 44
    assert metrics["density"] == 1
    assert metrics["parameters"] == 3 * 9 + 3 + 48 * 12 + 12 + 12 * 4 + 4
    assert metrics["digest"] == hashlib.sha256(step.read("weights.safetensors")).hexdigest()
    assert [entry["step"] for entry in history(step)] == list(range(6, 61, 6))
    assert history(step)[-1]["train_loss"] < history(step)[0]["train_loss"] / 2
    json.dumps(metrics)


def test_reported_accuracy_is_that_of_the_stored_weights():
    step = trained(toy(architecture=Tiny(norm=True, dropout=0.3)))
    for file, score in (("weights.safetensors", "last"), ("best.safetensors", "best")):
        model = initialise(Tiny(norm=True, dropout=0.3), Blobs().signature(), 5).eval()
        restore(model, step.read(file))
        validation = Blobs().load("validation")
        (images, labels), *_ = in_order(validation, 100, torch.device("cpu"))
        assert (model(images).argmax(1) == labels).float().mean().item() == pytest.approx(
            step.metrics[score]["accuracy"]
        )


def test_validation_leaves_the_network_as_it_was():
    model = initialise(Tiny(norm=True), Blobs().signature(), 0).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    validate(model, Blobs().load("validation"), torch.device("cpu"))
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_step_is_gradient_descent():
    """Against a loop written out by hand, with the same initial weights and batches; the rate drops at half-time."""
    step = trained(toy(objective=Witness(), schedule=Step(milestones=(0.5,), drop=0.2), epochs=1))
    model = initialise(Tiny(), Blobs().signature(), 0)
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses, sizes = [], []
    for number, (images, labels, *_) in enumerate(Witness.seen):
        optimizer.param_groups[0]["lr"] = 0.05 if number < 3 else 0.01
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        sizes.append(len(labels))
    for name, tensor in load_weights(step.read("weights.safetensors")).tensors.items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-4, atol=1e-6)
    assert sum(sizes) == 44
    mean = sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / 44
    assert history(step)[0]["train_loss"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize(
    ("component", "reference"),
    [
        (
            SGD(learning_rate=0.3, momentum=0.8, weight_decay=0.1, nesterov=True),
            lambda p: optim.SGD(p, lr=0.3, momentum=0.8, weight_decay=0.1, nesterov=True, fused=False),
        ),
        (
            Adam(learning_rate=0.3, beta1=0.7, beta2=0.8, epsilon=0.01, weight_decay=0.1),
            lambda p: optim.Adam(p, lr=0.3, betas=(0.7, 0.8), eps=0.01, weight_decay=0.1, fused=False),
        ),
        (
            AdamW(learning_rate=0.3, beta1=0.7, beta2=0.8, epsilon=0.01, weight_decay=0.1),
            lambda p: optim.AdamW(p, lr=0.3, betas=(0.7, 0.8), eps=0.01, weight_decay=0.1, fused=False),
        ),
    ],
    ids=["sgd", "adam", "adamw"],
)
def test_optimizers_update_as_pytorch_does(component: Any, reference: Any):
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 40)) for _ in range(2))
    optimizers = component.build([ours]), reference([theirs])
    for step in range(1, 5):
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            weight.grad = torch.sin(step * torch.arange(40.0))
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_rewinding_continues_the_schedule_and_meets_the_same_batches_and_noise():
    fields: dict[str, Any] = {"objective": Witness(), "schedule": Cosine(), "architecture": Tiny(dropout=0.2)}
    straight = trained(toy(**fields))
    seen, Witness.seen[:] = list(Witness.seen), []
    rewind = trained(toy(**fields, stop_at=8))
    Witness.seen.clear()
    onward = trained(toy(**fields), start=rewind)
    assert len(Witness.seen) == 10
    for (images, labels, own, layers), (images_then, labels_then, own_then, layers_then) in zip(
        Witness.seen, seen[8:], strict=True
    ):
        assert torch.equal(images, images_then)
        assert torch.equal(labels, labels_then)
        assert (own, layers) == (own_then, layers_then)
    assert [entry["learning_rate"] for entry in history(onward)] == [
        entry["learning_rate"] for entry in history(straight)[1:]
    ]
    assert onward.metrics["step"] == 18
    assert onward.metrics["sample_steps"] == 44 * 3 - (44 + 16)


def test_every_step_has_its_own_noise():
    trained(toy(objective=Witness()))
    assert len({own for *_, own, _ in Witness.seen}) == len({layers for *_, layers in Witness.seen}) == 18


def test_learning_rates_are_golden():
    schedule = Step(milestones=(1 / 3, 2 / 3), drop=0.5, warmup=1 / 6)
    optimizer = SGD(learning_rate=0.08)
    rates = [
        history(trained(toy(optimizer=optimizer, schedule=schedule, stop_at=k)))[-1]["learning_rate"]
        for k in (1, 3, 6, 7, 13)
    ]
    assert rates == pytest.approx([0.08 / 4, 0.08 * 3 / 4, 0.08, 0.04, 0.02])


def test_learning_rate_rewinding_runs_the_whole_schedule_on_trained_weights():
    final = trained(toy())
    again = trained(toy(schedule_from="zero", schedule=Cosine()), start=final)
    assert again.metrics["step"] == 18
    assert again.metrics["sample_steps"] == 3 * 44
    assert history(again)[0]["train_loss"] < history(final)[0]["train_loss"] / 2


def test_a_rewind_point_at_zero_is_the_initial_network():
    zero = trained(toy(stop_at=0))
    model = initialise(Tiny(), Blobs().signature(), 0)
    stored = load_weights(zero.read("weights.safetensors")).tensors
    assert all(torch.equal(stored[name], tensor) for name, tensor in model.state_dict().items())
    assert zero.metrics["sample_steps"] == 0
    assert same(trained(toy(), start=zero), trained(toy()))


def test_stopping_early_keeps_the_schedule_of_the_whole_training():
    first = history(trained(toy(schedule=Cosine(), stop_at=6)))
    assert first == history(trained(toy(schedule=Cosine())))[:1]


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(learning_rate=0.05, momentum=0.9, weight_decay=0.01),
        Adam(learning_rate=0.01, weight_decay=0.01),
        AdamW(learning_rate=0.01, weight_decay=0.1),
    ],
    ids=["sgd", "adam", "adamw"],
)
def test_pruned_weights_and_their_slots_stay_zero(optimizer: Any):
    dense = trained(toy(optimizer=optimizer, stop_at=5))
    pruned = half_mask(dense)
    # Rewound slots are those of a dense network: they too must be emptied where the mask prunes.
    sparse = trained(toy(optimizer=optimizer, rewind_optimizer=True, stop_at=12), start=dense, mask=pruned)
    mask = Mask.from_bytes(pruned.read("mask.safetensors"))
    weights = load_weights(sparse.read("weights.safetensors"))
    for name, kept in mask.items():
        assert (weights.tensors[name][~kept] == 0).all()
        assert (weights.tensors[name][kept] != 0).any()
    slots = load_slots(sparse)
    shaped = [(name, slot) for name, slot in slots.items() if slot.ndim >= 2]
    assert shaped
    for name, slot in shaped:
        assert (slot[~mask[name.split("/", 2)[2]]] == 0).all()
        assert (slot != 0).any()
    assert sparse.metrics["density"] == mask.density
    assert sparse.read("mask.safetensors") == pruned.read("mask.safetensors")


def load_slots(step: Finished) -> dict[str, torch.Tensor]:
    return load(step.read("optimizer.safetensors"))


def test_a_sparse_network_stays_sparse_without_being_told():
    sparse = trained(toy(), mask=half_mask(trained(toy(stop_at=0))))
    tuned = trained(toy(schedule_from="zero", epochs=1), start=sparse)
    assert tuned.metrics["density"] == sparse.metrics["density"] < 1
    assert tuned.read("mask.safetensors") == sparse.read("mask.safetensors")
    Mask.from_bytes(tuned.read("mask.safetensors")).audit_weights(
        load_weights(tuned.read("weights.safetensors")).kernels()
    )


@pytest.mark.parametrize("rate", [1e6, 1e30])
def test_divergence_is_reported_and_never_returned(rate: float):
    with pytest.raises(
        Diverged, match=r"diverged: .* at step \d+ \(epoch \d+\) with learning rate .*; lower optimizer"
    ):
        toy(optimizer=SGD(learning_rate=rate), epochs=20).run(Watch())


def test_divergence_names_the_first_bad_step():
    class Bomb(Witness):
        kind: Any = "toy-bomb"

        def loss(self, model: Any, images: Any, labels: Any, moment: Any) -> torch.Tensor:
            loss = super().loss(model, images, labels, moment)
            return loss * float("nan") if len(self.seen) == 11 else loss

    with pytest.raises(Diverged, match=r"the loss is nan at step 10 \(epoch 2\)"):
        toy(objective=Bomb.model_construct()).run(Watch())


def test_a_network_broken_by_the_last_update_is_not_returned():
    with pytest.raises(Diverged, match=r"the validation loss is .* at step 0"):
        toy(optimizer=SGD(learning_rate=1e38, momentum=0.9), stop_at=1).run(Watch())


def test_a_broken_network_that_validates_well_is_not_returned(monkeypatch: pytest.MonkeyPatch):
    """An infinite running variance, for one, hides behind finite outputs."""
    monkeypatch.setattr("tasks.training.run.validate", lambda *_: Score(0.9, 0.1))
    with pytest.raises(Diverged, match=r"'body\.\S+' has NaN or infinite values at step 0"):
        toy(optimizer=SGD(learning_rate=1e39), stop_at=1).run(Watch())


def test_the_best_network_is_the_earliest_of_equals():
    step = trained(toy(data=Blobs(constant=True), optimizer=SGD(learning_rate=1e-7)))
    accuracies = {entry["validation_accuracy"] for entry in history(step)}
    assert len(accuracies) == 1, "the toy must tie for this to mean anything"
    assert step.metrics["best"]["epoch"] == 1
    assert step.metrics["last"]["epoch"] == 3
    first = trained(toy(data=Blobs(constant=True), optimizer=SGD(learning_rate=1e-7), stop_at=BATCHES))
    assert step.read("best.safetensors") == first.read("weights.safetensors")


def test_validation_may_be_rare_but_the_last_step_is_always_validated():
    entries = history(trained(toy(epochs=5, validate_every=2, stop_at=28)))
    assert ["validation_accuracy" in entry for entry in entries] == [False, True, False, True, True]
    assert [entry["epoch"] for entry in entries] == [1, 2, 3, 4, 5]


def test_the_initial_seed_changes_the_initial_weights_and_nothing_else():
    task = toy(objective=Witness(), architecture=Tiny(dropout=0.2))
    one = trained(task)
    seen, Witness.seen[:] = list(Witness.seen), []
    other = trained(task.model_copy(update={"init_seed": 1}))
    assert not same(one, other)
    for (images, _, *noise), (images_then, _, *noise_then) in zip(Witness.seen, seen, strict=True):
        assert torch.equal(images, images_then)
        assert noise == noise_then
    zero = trained(toy(stop_at=0))
    assert same(zero, trained(toy(stop_at=0, seed=1)))
    assert not same(zero, trained(toy(stop_at=0, init_seed=1)))


def test_the_seed_changes_order_and_noise():
    trained(toy(objective=Witness()))
    seen, Witness.seen[:] = list(Witness.seen), []
    trained(toy(objective=Witness(), seed=1))
    assert not torch.equal(Witness.seen[0][0], seen[0][0])
    assert Witness.seen[0][2:] != seen[0][2:]


def test_adversarial_training_costs_its_attack():
    assert trained(toy(objective=PGD(epsilon=0.1, steps=4))).metrics["sample_steps"] == 3 * 44 * 5


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_and_keeps_full_weights(precision: str):
    objective = TRADES(beta=1, epsilon=0.02, steps=2)  # its attack also looks at the network without a gradient
    step = trained(toy(precision=precision, epochs=10, objective=objective))
    assert step.metrics["last"]["accuracy"] > 0.9
    assert all(
        tensor.dtype == torch.float32 for tensor in load_weights(step.read("weights.safetensors")).tensors.values()
    )
    assert not same(step, trained(toy(epochs=10, objective=objective)))


@pytest.mark.parametrize(
    "optimizer", [SGD(learning_rate=0.0025, momentum=0.9), Adam(learning_rate=0.01), AdamW(learning_rate=0.01)]
)
def test_steps_that_half_precision_skips_leave_no_trace(optimizer: Any):
    """The first gradients overflow; what follows must be what full precision does from its first step."""
    step = trained(toy(precision="fp16", objective=Loud(), optimizer=optimizer, stop_at=5))
    scale = load(step.read("optimizer.safetensors"))["scaler/scale"].item()
    skipped = round(math.log2(2**16 / scale))
    assert 0 < skipped < 5, "the toy must overflow, and recover, for this to mean anything"
    reference = trained(toy(objective=Loud(), optimizer=optimizer, stop_at=5 - skipped))
    assert step.metrics["last"]["loss"] == pytest.approx(reference.metrics["last"]["loss"], rel=0.05)
    largest = max(tensor.abs().max() for name, tensor in load_slots(step).items() if not name.startswith("scaler"))
    assert largest < 1e3


def test_channels_last_gives_the_same_network_up_to_rounding():
    plain = load_weights(trained(toy()).read("weights.safetensors")).tensors
    other = load_weights(trained(toy(channels_last=True)).read("weights.safetensors")).tensors
    for name, tensor in plain.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "inputs", "complaint"),
    [
        ({"stop_at": 19}, {}, r"stop_at is 19, but the whole training has 18 steps \(3 epochs of 6 batches\)"),
        ({}, {"start": {}}, r"nothing to train: start is at step 18 and training ends at step 18"),
        ({"stop_at": 3}, {"start": {"stop_at": 4}}, "start is at step 4 and training ends at step 3"),
        ({"rewind_optimizer": True, "epochs": 4}, {"start": {}}, "only a step with stop_at keeps it"),
        (
            {"rewind_optimizer": True, "optimizer": Adam()},
            {"start": {"stop_at": 4}},
            "was trained with 'sgd', not with 'adam'",
        ),
        ({"architecture": Tiny(norm=True)}, {"start": {"stop_at": 4}}, "do not fit"),
        ({}, {"masks": {}}, "train has no input 'masks'; allowed: start, mask"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], inputs: dict[str, Any], complaint: str):
    steps = {name: trained(toy(**given)) for name, given in inputs.items()}
    with pytest.raises(ValueError, match=complaint):
        toy(**fields).run(Watch(), **steps)


@pytest.mark.parametrize(
    "fields",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"stop_at": -1},
        {"validate_every": 0},
        {"precision": "fp8"},
        {"optimizer": {"kind": "sgd", "learning_rate": 0}},
        {"optimizer": {"kind": "sgd", "nesterov": True}},
        {"rewind_optimizer": True, "schedule_from": "zero"},
    ],
)
def test_impossible_fields_are_refused(fields: dict[str, Any]):
    with pytest.raises(ValidationError):
        toy(**fields)


def test_a_recipe_names_components_by_kind():
    task = Train.model_validate(
        {
            "data": {"kind": "toy-blobs"},
            "architecture": "toy-tiny",
            "optimizer": {"kind": "adam", "learning_rate": 0.0012},
            "schedule": {"kind": "step", "milestones": [0.5]},
            "objective": {"kind": "trades", "beta": 6, "epsilon": 0.1},
            "epochs": 3,
        }
    )
    assert task.optimizer == Adam(learning_rate=0.0012)
    assert "seed" not in task.identity()
    assert task.model_copy(update={"gpus": 1}).identity() == task.identity()
