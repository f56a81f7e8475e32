"""Scopes, densities and rounds of a pruning: exact totals, and one clear line for what cannot be."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import nn

from tasks.data import Examples
from tasks.models.initialise import initialise
from tasks.models.lenet import LeNet300100
from tasks.models.weights import load_weights, weights_to_bytes
from tasks.pruning import Saliency
from tasks.pruning.candidate import Candidate
from tasks.pruning.gap import GAP
from tasks.pruning.mask import Mask
from tasks.pruning.prune import Prune
from tasks.task import Alone
from tests.tasks.test_pruning import HIDDEN1, HIDDEN2, MNIST, OUTPUT, Finished, kept_by, tiny, trained
from tests.tasks.training_toys import Blobs, Tiny

SIZES = {HIDDEN1: 235_200, HIDDEN2: 30_000, OUTPUT: 1_000}


@pytest.fixture(scope="module")
def lenet() -> nn.Module:
    return initialise(LeNet300100(), MNIST, 0, "xavier-normal")


def pruned(model: nn.Module, mask: Mask | None = None, **fields: Any) -> Mask:
    inputs = {}
    if mask is not None:
        mask.apply_(model)
        inputs["mask"] = Finished({"mask.safetensors": mask.to_bytes()})
    return kept_by(Prune(**fields).run(Alone(), trained=trained(model), **inputs))


class Witness(Saliency):
    """Magnitude that notes what every round shows it."""

    kind: Literal["toy-candidates"] = "toy-candidates"
    sees: ClassVar = "data"
    seen: ClassVar[list[tuple[Candidate, dict[str, torch.Tensor], bool]]] = []

    def score(self, network: Candidate) -> dict[str, torch.Tensor]:
        state = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
        self.seen.append((network, state, network.model.training))
        return {name: weight.abs() for name, weight in network.weights.items()}

    def sample_steps(self, examples: Examples) -> int:
        return len(examples)


@pytest.mark.parametrize("scope", ["global", "layerwise", "uniform", "erk"])
@pytest.mark.parametrize("rounds", [1, 5])
def test_every_scope_keeps_exactly_the_density(lenet: nn.Module, scope: str, rounds: int) -> None:
    kept = pruned(lenet, density=0.05, scope=scope, rounds=rounds)
    assert kept.nnz == 13_310
    if scope in ("layerwise", "uniform"):
        assert kept.layer_nnz == {name: size // 20 for name, size in SIZES.items()}
    if scope == "erk":
        found = [kept.layer_densities[name] for name in SIZES]
        assert found == pytest.approx([0.0385, 0.1113, 0.9185], abs=1e-3)


@pytest.mark.parametrize("scope", ["global", "layerwise", "uniform", "erk"])
def test_a_spared_output_layer_counts_towards_the_density_and_keeps_all(lenet: nn.Module, scope: str) -> None:
    kept = pruned(lenet, density=0.05, scope=scope, output_layer="exclude")
    assert kept.nnz == 13_310
    assert kept.layer_nnz[OUTPUT] == 1_000


@pytest.mark.parametrize("scope", ["uniform", "erk"])
def test_a_fraction_is_shared_out_by_the_scope(lenet: nn.Module, scope: str) -> None:
    kept = pruned(lenet, fraction=0.95, scope=scope)
    assert kept.layer_nnz == pruned(lenet, density=0.05, scope=scope).layer_nnz


@pytest.mark.parametrize("scope", ["layerwise", "uniform", "erk"])
def test_levels_of_a_scope_follow_one_another_to_the_last_weights(scope: str) -> None:
    model = initialise(LeNet300100(), MNIST, 0, "xavier-normal")
    kept = None
    for level in range(1, 16):
        before, kept = kept, pruned(model, kept, density=0.001 ** (level / 15), scope=scope)
        assert kept.nnz == round(0.001 ** (level / 15) * 266_200)
        assert before is None or kept.nested_in(before)


def test_layerwise_with_a_density_leaves_every_layer_the_same_share_of_what_it_has() -> None:
    model = tiny([float(weight) for weight in range(1, 101)], [float(weight) for weight in range(1, 51)])
    half = Mask({"body.0.weight": torch.arange(100).view(-1, 1) < 20, "body.1.weight": torch.ones(50, 1).bool()})
    assert pruned(model, half, density=35 / 150, scope="layerwise").layer_nnz == {
        "body.0.weight": 10,
        "body.1.weight": 25,
    }


def test_a_layer_with_fewer_weights_than_it_should_keep_is_refused_by_name() -> None:
    model = tiny([float(weight) for weight in range(1, 101)], [float(weight) for weight in range(1, 101)])
    mask = Mask({"body.0.weight": torch.arange(100).view(-1, 1) < 20, "body.1.weight": torch.ones(100, 1).bool()})
    with pytest.raises(
        ValueError, match=r"density 0\.4 with scope uniform: 40 weights of 'body\.0\.weight' are to be "
    ):
        pruned(model, mask, density=0.4, scope="uniform")
    with pytest.raises(ValueError, match=r"density 0\.4 with scope erk: .* which has 20 left"):
        pruned(model, mask, density=0.4, scope="erk")
    with pytest.raises(ValueError, match=r"fraction 0\.3 with scope uniform: 42 weights of 'body\.0\.weight'"):
        pruned(model, mask, fraction=0.3, scope="uniform")


def test_a_density_above_what_is_left_is_refused_with_counts(lenet: nn.Module) -> None:
    model = initialise(LeNet300100(), MNIST, 0)
    mask = pruned(model, density=0.1)
    with pytest.raises(ValueError, match=r"density 0\.2 is more than is left: 26620 of 266200 weights"):
        pruned(model, mask, density=0.2)
    with pytest.raises(ValueError, match=r"density 0\.1 of the 26620 weights left of 266200 removes none"):
        pruned(model, mask, density=0.1)


@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_a_density_that_the_spared_layer_uses_up_is_refused_with_counts(lenet: nn.Module, scope: str) -> None:
    with pytest.raises(ValueError, match=r"density 0\.003 of 266200 weights is 799, and the output layer.*has 1000"):
        pruned(lenet, density=0.003, scope=scope, output_layer="exclude")


def test_a_layer_that_erk_rounds_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"leaves none of the 2 weights of 'body\.1\.weight'"):
        pruned(tiny([1.0] * 500, [1.0] * 2), density=0.002, scope="erk")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give either fraction or density"),
        ({"fraction": 0.2, "density": 0.1}, "give either fraction or density"),
        ({"density": 0.1, "output_layer": "half"}, "half is half of a fraction"),
        ({"density": 0.0}, "density"),
        ({"density": 1.0}, "density"),
        ({"fraction": 0.2, "rounds": 0}, "rounds"),
        ({"fraction": 0.2, "scope": "everywhere"}, "scope"),
        ({"fraction": 0.2, "saliency": GAP(epsilon=0.1, variant="layer")}, "scope: this gap ranks weights within"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prune(**fields)


@pytest.mark.parametrize("scope", ["layerwise", "uniform", "erk"])
def test_a_saliency_of_layers_takes_any_scope_that_ranks_them_apart(scope: Any) -> None:
    assert Prune(fraction=0.2, scope=scope, saliency=GAP(epsilon=0.1, variant="layer")).scope == scope


def test_every_round_removes_the_same_share_and_sees_the_network_that_the_one_before_left() -> None:
    model = initialise(Tiny(norm=True), Blobs().signature(), 0)
    Witness.seen.clear()
    prune = Prune(density=0.1, rounds=4, saliency=Witness()).beside(Blobs(), Tiny(norm=True))
    result = prune.run(Alone(), trained=trained(model))
    masks = [candidate.mask for candidate, _, _ in Witness.seen] + [kept_by(result)]
    assert [mask.nnz for mask in masks] == [round(651 * 0.1 ** (each / 4)) for each in range(5)]
    assert all(after.nested_in(before) for before, after in pairwise(masks))
    stored = load_weights(weights_to_bytes(model))
    for candidate, state, training in Witness.seen:
        assert not training
        for name, kernel in stored.kernels().items():
            alive = kernel * candidate.mask[name]
            assert torch.equal(state[name], alive)
            assert torch.equal(candidate.weights[name], alive)
        assert len(candidate.examples) == 44
        assert candidate.signature == Blobs().signature()
    assert result.metrics["sample_steps"] == 4 * 44


def test_a_saliency_that_sees_data_is_refused_without_them() -> None:
    with pytest.raises(ValueError, match="saliency toy-candidates looks at the network: give data and architecture"):
        Prune(density=0.1, saliency=Witness()).run(Alone(), trained=trained(initialise(Tiny(), Blobs().signature(), 0)))


def test_what_a_saliency_does_not_see_stays_out_of_the_identity() -> None:
    blind = Prune(density=0.1)
    assert blind.beside(Blobs(), Tiny()).identity() == blind.identity()
    assert {"data", "architecture"} <= Prune(density=0.1, saliency="synflow").beside(Blobs(), Tiny()).identity().keys()
