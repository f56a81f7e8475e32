"""Pruning during training: exact counts, nested masks, dead weights, and the same bytes after any interruption."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tasks.models.initialise import initialise
from tasks.models.prunable import prunable
from tasks.models.weights import load_weights
from tasks.objectives.pgd import PGD
from tasks.optimizers.adam import Adam
from tasks.optimizers.sgd import SGD
from tasks.pruning.mask import Enforcer, Mask
from tasks.pruning.prune import Prune
from tasks.pruning.random import Random
from tasks.pruning.sparsifiers import Stage
from tasks.pruning.sparsifiers.admm import ADMM
from tasks.pruning.sparsifiers.early_bird import EarlyBird
from tasks.pruning.sparsifiers.gradual import Gradual
from tasks.pruning.sparsifiers.lagrangian_dual import LagrangianDual
from tests.tasks.training_toys import BATCHES, Blobs, Finished, Tiny, Watch, half_mask, history, resumed, toy, trained

OUTPUT = "body.7.weight"
TOTAL = 27 + 576 + 48
"""Prunable weights of the toy network: 3x1x3x3, 12x48 and 4x12."""


def network() -> nn.Module:
    return initialise(Tiny(), Blobs().signature(), 0)


def mask_of(step: Finished) -> Mask:
    return Mask.from_bytes(step.read("mask.safetensors"))


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[Mask]:
    """Every mask that a training comes under after its beginning."""
    seen: list[Mask] = []
    renew = Enforcer.renew

    def note(enforcer: Enforcer, mask: Mask) -> None:
        seen.append(mask)
        renew(enforcer, mask)

    monkeypatch.setattr(Enforcer, "renew", note)
    return seen


def test_density_falls_along_the_cubic_to_the_very_count(masks: list[Mask]) -> None:
    """Zhu & Gupta 2018, eq. 1, by hand: pruned at steps 5, 7, 9, 11 and 13 of 18, from step 3 on."""
    step = trained(toy(sparsifier=Gradual(density=0.1, begin=1 / 6, end=13 / 18, every=2)))
    final = round(0.1 * TOTAL)
    cubic = [final + round((TOTAL - final) * (1 - share) ** 3) for share in (0.2, 0.4, 0.6, 0.8, 1.0)]
    assert [mask.nnz for mask in masks] == [TOTAL, *cubic]
    assert cubic[-1] == final == mask_of(step).nnz
    assert step.metrics["density"] == final / TOTAL
    assert all(later.nested_in(earlier) for earlier, later in pairwise(masks))


@pytest.mark.parametrize("scope", ["global", "layerwise", "uniform", "erk"])
@pytest.mark.parametrize("output", ["include", "exclude"])
def test_layers_end_with_the_counts_of_a_pruning(scope: Any, output: Any, masks: list[Mask]) -> None:
    density = 0.2
    step = trained(toy(sparsifier=Gradual(density=density, scope=scope, output_layer=output, every=3)))
    assert mask_of(step).nnz == round(density * TOTAL)
    assert all(later.nested_in(earlier) for earlier, later in pairwise(masks))
    if output == "exclude":
        assert mask_of(step).layer_nnz[OUTPUT] == 48
    if scope != "global":
        dense = trained(toy())
        pruned = trained(Prune(density=density, scope=scope, output_layer=output), trained=dense)
        assert mask_of(step).layer_nnz == mask_of(pruned).layer_nnz


def test_the_smallest_weights_of_the_moment_are_pruned() -> None:
    model = network()
    sparsifier = Gradual(density=0.3, end=0.5)
    dense = Mask.ones_like(prunable(model))
    memory = sparsifier.memory(model, dense)
    change = sparsifier.after_step(model, memory, Stage(50, 100, 10, dense))
    assert change is not None
    assert change.mask is not None
    weights = torch.cat([prunable(model)[name].detach().flatten() for name in dense]).abs()
    kept = torch.cat([change.mask[name].flatten() for name in dense])
    assert int(kept.sum()) == round(0.3 * TOTAL)
    assert weights[kept].min() >= weights[~kept].max()


def test_pruning_waits_for_its_beginning_and_catches_up_after_its_end() -> None:
    model, sparsifier = network(), Gradual(density=0.3, begin=0.2, end=0.6, every=10)
    dense = Mask.ones_like(prunable(model))
    memory = sparsifier.memory(model, dense)

    def pruned(step: int) -> int | None:
        change = sparsifier.after_step(model, memory, Stage(step, 100, 10, dense))
        return change.mask.nnz if change is not None and change.mask is not None else None

    final = round(0.3 * TOTAL)
    assert [pruned(step) for step in (10, 20, 35)] == [None, None, None]
    assert pruned(40) == final + round((TOTAL - final) / 8)
    assert pruned(60) == pruned(97) == final


def test_a_network_at_its_density_is_left_alone() -> None:
    model, sparsifier = network(), Gradual(density=0.3, end=0.5, every=1)
    sparse = Mask.ones_like(prunable(model)).top(prunable(model), round(0.3 * TOTAL))
    memory = sparsifier.memory(model, sparse)
    assert all(sparsifier.after_step(model, memory, Stage(step, 100, 10, sparse)) is None for step in (10, 50, 90))


@pytest.mark.parametrize("optimizer", [SGD(learning_rate=0.05, momentum=0.9), Adam(learning_rate=0.01)])
def test_what_was_pruned_never_comes_back(optimizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dead: list[int] = []

    class Auditing(Gradual):
        kind: Literal["toy-auditing"] = "toy-auditing"  # type: ignore[assignment]

        def after_step(self, model: nn.Module, memory: nn.Module, stage: Stage) -> Any:
            assert stage.mask is not None
            stage.mask.audit(model)
            dead.append(stage.mask.total - stage.mask.nnz)
            return super().after_step(model, memory, stage)

    step = trained(toy(optimizer=optimizer, sparsifier=Auditing(density=0.2, end=0.5, every=2)))
    mask_of(step).audit_weights(load_weights(step.read("weights.safetensors")).kernels())
    assert sorted(dead) == dead
    assert dead[0] == 0
    assert dead[-1] == TOTAL - round(0.2 * TOTAL)


def test_the_best_network_is_one_under_the_last_mask() -> None:
    """Validation cannot tell the epochs apart, so the first one would be the best."""
    task = toy(data=Blobs(constant=True), sparsifier=Gradual(density=0.2, end=0.6, every=3))
    step = trained(task)
    assert step.metrics["best"]["step"] == 2 * BATCHES
    mask_of(step).audit_weights(load_weights(step.read("best.safetensors")).kernels())


def test_a_pruning_after_the_very_last_step_counts() -> None:
    """What is validated and stored is the network under the mask that came last."""
    step = trained(toy(sparsifier=Gradual(density=0.05, end=1, every=10)))
    assert mask_of(step).nnz == round(0.05 * TOTAL)
    mask_of(step).audit_weights(load_weights(step.read("weights.safetensors")).kernels())
    again = trained(toy(schedule_from="zero", optimizer=SGD(learning_rate=1e-30), epochs=1), start=step)
    assert again.metrics["last"]["loss"] == step.metrics["last"]["loss"]


SPARSIFIERS = {
    "gradual": Gradual(density=0.2, end=0.7, every=2),
    "gradual-random": Gradual(density=0.2, end=0.7, every=4, saliency=Random()),
    "admm": ADMM(density=0.2, rho=0.1, scope="layerwise"),
    "lagrangian-dual": LagrangianDual(density=0.2, rate=1.0),
    "early-bird": EarlyBird(density=0.5, window=2, every=0.5, distance=0.02),
}


@pytest.mark.parametrize("name", SPARSIFIERS)
def test_interrupted_anywhere_training_ends_with_the_same_bytes(name: str) -> None:
    task = toy(sparsifier=SPARSIFIERS[name], objective=PGD(epsilon=0.1, steps=1), architecture=Tiny(norm=True))
    straight = task.run(Watch())
    for saves in range(1, straight.metrics["step"]):
        assert resumed(task, [saves], {}) == straight, f"interrupted after step {saves}"
    assert resumed(task, [2, 5, 4], {}) == straight


@pytest.mark.parametrize("name", SPARSIFIERS)
def test_sparsifiers_work_under_a_mask_and_from_a_start(name: str) -> None:
    start = trained(toy())
    inputs = {"start": start, "mask": half_mask(start)}
    task = toy(sparsifier=SPARSIFIERS[name], schedule_from="zero")
    straight = task.run(Watch(), **inputs)
    mask = Mask.from_bytes(straight.files["mask.safetensors"])
    assert mask.nested_in(mask_of(inputs["mask"]))
    assert resumed(task, [8], inputs) == straight


@pytest.mark.parametrize("name", ["admm", "lagrangian-dual"])
def test_preparing_a_network_leaves_it_dense(name: str) -> None:
    step = trained(toy(sparsifier=SPARSIFIERS[name]))
    assert step.metrics["density"] == 1
    assert "mask.safetensors" not in step.files
    assert step.metrics["digest"] != trained(toy()).metrics["digest"]


class Line(nn.Module):
    """One kernel of six weights, its own output layer."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.output = nn.Linear(len(weights), 1, bias=False)
        self.output.weight.data = torch.tensor([weights])


def line(monkeypatch: pytest.MonkeyPatch, *weights: float) -> Line:
    monkeypatch.setattr("tasks.pruning.sparsifiers.to_density.output_layer", lambda _: "output.weight")
    return Line(*weights)


def epoch(sparsifier: Any, model: nn.Module, memory: nn.Module, number: int = 1) -> None:
    assert sparsifier.after_step(model, memory, Stage(10 * number - 1, 100, 10, None)) is None
    assert sparsifier.after_step(model, memory, Stage(10 * number, 100, 10, None)) is None


def test_admm_follows_its_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, two of four weights: W changes between two updates, and U then changes which ones are nearest."""
    model, sparsifier = line(monkeypatch, 4.0, 3.0, 2.0, 1.0), ADMM(density=0.5, rho=0.5, growth=2, largest=2)
    memory = sparsifier.memory(model, None)
    assert sparsifier.penalty(model, memory).item() == 0.25 * (2**2 + 1**2)
    epoch(sparsifier, model, memory)  # Z stays (4, 3, 0, 0), U becomes (0, 0, 2, 1) / 2, rho 1
    assert sparsifier.penalty(model, memory).item() == 0.5 * ((2 + 1) ** 2 + (1 + 0.5) ** 2)
    model.output.weight.data = torch.tensor([[4.0, 2.5, 2.0, 1.0]])
    epoch(sparsifier, model, memory, 2)  # W + U = (4, 2.5, 3, 1.5): Z = (4, 0, 3, 0), U = (0, 2.5, 0, 1.5) / 2, rho 2
    assert sparsifier.penalty(model, memory).item() == (2.5 + 1.25) ** 2 + (2 - 3) ** 2 + (1 + 0.75) ** 2


def test_the_pull_of_admm_grows_no_further_than_descent_can_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sparsifier = line(monkeypatch, 4.0, 3.0, 2.0, 1.0), ADMM(density=0.5, rho=0.5, growth=1.5)
    memory = sparsifier.memory(model, None)
    found = []
    for turn in (1, 2, 3):
        epoch(sparsifier, model, memory, turn)
        found.append(memory.get_buffer("rho").item())
    assert found == [0.75, 1, 1]


def test_admm_keeps_the_exact_count_among_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sparsifier = line(monkeypatch, 1.0, -1.0, 1.0, 1.0), ADMM(density=0.5, rho=2)
    assert sparsifier.penalty(model, sparsifier.memory(model, None)).item() == 2


def test_the_pull_of_admm_is_the_gradient_of_its_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sparsifier = line(monkeypatch, 4.0, 3.0, 2.0, 1.0), ADMM(density=0.5, rho=0.5)
    sparsifier.penalty(model, sparsifier.memory(model, None)).backward()
    assert torch.equal(model.output.weight.grad, torch.tensor([[0.0, 0.0, 1.0, 0.5]]))


def test_multipliers_rise_by_the_share_of_mass_outside_and_never_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sparsifier = line(monkeypatch, 3.0, -1.0, 2.0, 1.0), LagrangianDual(density=0.25, rate=0.5)
    memory = sparsifier.memory(model, None)
    assert sparsifier.penalty(model, memory).item() == 0
    epoch(sparsifier, model, memory)
    multiplier = 0.5 * 6 / 15
    assert sparsifier.penalty(model, memory).item() == pytest.approx(multiplier * 6)
    sparsifier.penalty(model, memory).backward()
    assert torch.allclose(model.output.weight.grad, 2 * multiplier * torch.tensor([[0.0, -1.0, 2.0, 1.0]]))
    model.output.weight.data = torch.tensor([[1.0, 0.0, 2.0, 0.0]])
    epoch(sparsifier, model, memory, 2)  # what lay outside before has 4 / 5 of the mass; now the first weight does
    multiplier += 0.5 * 4 / 5
    assert sparsifier.penalty(model, memory).item() == pytest.approx(multiplier * 1)
    model.output.weight.data = torch.tensor([[0.0, 0.0, 2.0, 0.0]])
    epoch(sparsifier, model, memory, 3)
    assert memory.get_buffer("multipliers").item() == pytest.approx(multiplier), "no violation, no change"


def test_absolute_mass_pulls_all_weights_outside_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sparsifier = line(monkeypatch, 3.0, -1.0, 2.0), LagrangianDual(density=0.34, mass="absolute", rate=1)
    memory = sparsifier.memory(model, None)
    epoch(sparsifier, model, memory)
    sparsifier.penalty(model, memory).backward()
    assert torch.allclose(model.output.weight.grad, torch.tensor([[0.0, -0.5, 0.5]]))


class Demanding(Random):
    """A saliency that wants data."""

    sees: ClassVar[Literal["weights", "network", "data"]] = "data"
    kind: Literal["toy-demanding"] = "toy-demanding"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"begin": 0.5, "end": 0.5}, "begin must be less than end"),
        ({"saliency": Demanding()}, "toy-demanding looks at more than the weights"),
        ({"density": 1.0}, "less than 1"),
        ({"every": 0}, "greater than or equal to 1"),
    ],
)
def test_a_gradual_pruning_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Gradual(**{"density": 0.5, **fields})


def test_a_network_that_is_sparser_already_is_refused_before_any_step() -> None:
    start = trained(toy())
    inputs = {"start": start, "mask": half_mask(start)}
    for name in SPARSIFIERS:
        sparsifier = SPARSIFIERS[name].model_copy(update={"density": 0.8})
        with pytest.raises(ValueError, match=r"density 0\.8 "):
            toy(sparsifier=sparsifier, schedule_from="zero").run(Watch(saves=1), **inputs)


def test_a_layer_that_would_be_left_empty_ends_the_training() -> None:
    with pytest.raises(
        ValueError, match=r"density 0\.002 leaves none of the \d+ weights of 'body\.\d\.weight' at step"
    ):
        trained(toy(sparsifier=Gradual(density=0.002, end=0.5, every=1)))


def test_history_has_every_epoch_of_a_gradual_pruning() -> None:
    step = trained(toy(sparsifier=Gradual(density=0.2, end=0.7, every=2)))
    assert [entry["step"] for entry in history(step)] == [BATCHES, 2 * BATCHES, 3 * BATCHES]
