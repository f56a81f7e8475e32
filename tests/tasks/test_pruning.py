"""Pruning rounds: exact counts, nesting, the output layer, controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from tasks.component import members
from tasks.data import Signature
from tasks.models.initialise import initialise
from tasks.models.lenet import LeNet300100
from tasks.models.network import Network
from tasks.models.weights import weights_to_bytes
from tasks.pruning import Saliency
from tasks.pruning.magnitude import Magnitude
from tasks.pruning.mask import Mask
from tasks.pruning.prune import Prune
from tasks.pruning.random import Random
from tasks.pruning.shuffle import ShuffleMask
from tasks.task import Alone, Result

MNIST = Signature(1, 28, 28, 10, mean=(0.13,), std=(0.31,))
HIDDEN1, HIDDEN2, OUTPUT = "body.hidden1.weight", "body.hidden2.weight", "body.output.weight"


@dataclass
class Finished:
    """A stored step."""

    files: dict[str, bytes]
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def read(self, name: str) -> bytes:
        return self.files[name]


def trained(model: nn.Module) -> Finished:
    return Finished({"weights.safetensors": weights_to_bytes(model)})


def tiny(*layers: list[float]) -> nn.Module:
    """Linear layers without biases, one weight a row, with these weights; the last is the output layer."""
    body = nn.Sequential()
    for weights in layers:
        body.append(nn.Linear(1, len(weights), bias=False))
        body[-1].weight.data = torch.tensor(weights).view(-1, 1)
    return Network(MNIST, body, body[-1])


def kept_by(result: Result) -> Mask:
    return Mask.from_bytes(result.files["mask.safetensors"])


def rounds(prune: Prune, model: nn.Module, levels: int) -> list[Result]:
    """Iterated pruning without training in between."""
    results: list[Result] = []
    for _ in range(levels):
        inputs = {"mask": Finished(results[-1].files)} if results else {}
        if results:
            kept_by(results[-1]).apply_(model)
        results.append(prune.run(Alone(), trained=trained(model), **inputs))
    return results


@pytest.fixture(scope="module")
def lenet() -> nn.Module:
    return initialise(LeNet300100(), MNIST, 0, "xavier-normal")


def test_every_saliency_is_found_by_its_name() -> None:
    assert {"magnitude", "random"} <= set(members(Saliency))
    assert Prune(fraction=0.2, saliency="random").saliency == Random()


def test_counts_of_the_published_lenet_schedule_are_exact(lenet: nn.Module) -> None:
    prune = Prune(fraction=0.2, scope="layerwise", output_layer="half")
    results = rounds(prune, initialise(LeNet300100(), MNIST, 0, "xavier-normal"), 15)
    expected = {HIDDEN1: 235_200, HIDDEN2: 30_000, OUTPUT: 1_000}
    for result in results:
        expected = {name: kept - round((0.1 if name == OUTPUT else 0.2) * kept) for name, kept in expected.items()}
        assert kept_by(result).layer_nnz == expected
        assert result.metrics["kept"] == sum(expected.values())
    assert expected == {HIDDEN1: 8_275, HIDDEN2: 1_056, OUTPUT: 206}
    assert results[-1].metrics["density"] == pytest.approx(0.0358, abs=1e-4)  # the paper's 3.6 %


def test_global_rounds_keep_the_exact_count_and_nest() -> None:
    results = rounds(Prune(fraction=0.2), initialise(LeNet300100(), MNIST, 0), 10)
    expected = 266_200
    for result in results:
        expected -= round(0.2 * expected)
        assert result.metrics["kept"] == kept_by(result).nnz == expected
        assert result.metrics["total"] == 266_200
    for before, after in pairwise(map(kept_by, results)):
        assert after.nested_in(before)


def test_ties_do_not_prune_extra_weights() -> None:
    results = rounds(Prune(fraction=0.2), tiny([1.0, -1.0] * 45, [2.0] * 10), 5)
    assert [result.metrics["kept"] for result in results] == [80, 64, 51, 41, 33]


def test_magnitude_removes_the_smallest_absolute_values() -> None:
    model = tiny([-9.0, 0.1, -0.2, 8.0], [0.3, -7.0, 5.0, 6.0])
    kept = kept_by(Prune(fraction=0.375).run(Alone(), trained=trained(model)))
    assert kept["body.0.weight"].flatten().tolist() == [True, False, False, True]
    assert kept["body.1.weight"].flatten().tolist() == [False, True, True, True]


def test_layerwise_removes_the_same_share_of_every_layer_and_global_does_not() -> None:
    model = tiny([0.1, 0.2, 0.3, 0.4, 9.0, 9.0, 9.0, 9.0], [5.0, 6.0, 7.0, 8.0])
    layers = {"body.0.weight": 4, "body.1.weight": 2}
    assert kept_by(Prune(fraction=0.5, scope="layerwise").run(Alone(), trained=trained(model))).layer_nnz == layers
    assert kept_by(Prune(fraction=1 / 3).run(Alone(), trained=trained(model))).layer_nnz == {
        "body.0.weight": 4,
        "body.1.weight": 4,
    }


def test_a_spared_output_layer_adds_nothing_to_the_quota_of_the_others(lenet: nn.Module) -> None:
    kept = kept_by(Prune(fraction=0.2, output_layer="exclude").run(Alone(), trained=trained(lenet)))
    assert kept.layer_nnz[OUTPUT] == 1_000
    assert kept.nnz == 1_000 + 265_200 - round(0.2 * 265_200)
    assert kept.nnz != 266_200 - round(0.2 * 266_200)


def test_spared_weights_never_overrun_the_ranking_at_high_sparsity() -> None:
    model = tiny([float(weight) for weight in range(1, 11)], [1.0] * 1000)
    kept = kept_by(Prune(fraction=0.9, output_layer="exclude").run(Alone(), trained=trained(model)))
    assert kept.layer_nnz == {"body.0.weight": 1, "body.1.weight": 1000}


def test_half_ranks_the_output_layer_by_itself_at_half_the_fraction(lenet: nn.Module) -> None:
    for scope in ("global", "layerwise"):
        kept = kept_by(Prune(fraction=0.2, output_layer="half", scope=scope).run(Alone(), trained=trained(lenet)))
        assert kept.layer_nnz[OUTPUT] == 900
        assert kept.nnz == 900 + 265_200 - round(0.2 * 265_200)


def test_the_output_layer_is_the_declared_one_and_not_the_last() -> None:
    body = nn.Sequential(nn.Linear(1, 10), nn.Linear(10, 10))
    kept = kept_by(
        Prune(fraction=0.5, output_layer="exclude").run(Alone(), trained=trained(Network(MNIST, body, body[0])))
    )
    assert kept.layer_nnz == {"body.0.weight": 10, "body.1.weight": 50}


def test_random_pruning_ignores_the_weights_and_follows_its_seed(lenet: nn.Module) -> None:
    prune = Prune(fraction=0.5, saliency=Random(), seed=1)
    kept = kept_by(prune.run(Alone(), trained=trained(lenet)))
    other_weights = initialise(LeNet300100(), MNIST, 5)
    assert kept == kept_by(prune.run(Alone(), trained=trained(other_weights)))
    assert kept != kept_by(Prune(fraction=0.5, saliency=Random(), seed=2).run(Alone(), trained=trained(lenet)))
    assert kept.nnz == 133_100
    assert kept.layer_densities[HIDDEN1] == pytest.approx(0.5, abs=0.01)
    assert kept.layer_densities[HIDDEN2] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("saliency", [Magnitude(), Random()])
def test_pruning_is_bit_identical_whatever_the_global_generator_holds(saliency: Saliency, lenet: nn.Module) -> None:
    contents = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        contents.add(
            Prune(fraction=0.3, saliency=saliency).run(Alone(), trained=trained(lenet)).files["mask.safetensors"]
        )
        assert torch.equal(torch.get_rng_state(), state)
    assert len(contents) == 1


def test_metrics_describe_the_mask_in_the_file(lenet: nn.Module) -> None:
    result = Prune(fraction=0.2).run(Alone(), trained=trained(lenet))
    kept = kept_by(result)
    assert result.metrics == {
        "density": kept.nnz / 266_200,
        "kept": kept.nnz,
        "total": 266_200,
        "layers": kept.layer_densities,
        "digest": kept.digest,
    }


def test_a_fraction_that_removes_nothing_is_refused_with_counts() -> None:
    with pytest.raises(ValueError, match=r"fraction 0\.05 of the 8 weights left of 8 removes none"):
        Prune(fraction=0.05).run(Alone(), trained=trained(tiny([1.0] * 4, [2.0] * 4)))
    with pytest.raises(ValueError, match="removes none"):
        Prune(fraction=0.5, output_layer="exclude").run(Alone(), trained=trained(tiny([1.0] * 4)))


def test_a_fraction_that_empties_a_layer_is_refused_with_its_name_and_counts() -> None:
    model = tiny([0.1, 0.2], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"fraction 0\.5 leaves none of the 2 weights of 'body\.0\.weight': 2 of 4"):
        Prune(fraction=0.5).run(Alone(), trained=trained(model))
    assert Prune(fraction=0.5, scope="layerwise").run(Alone(), trained=trained(model)).metrics["kept"] == 2


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_fraction_is_between_none_and_all(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        Prune(fraction=fraction)


def test_a_diverged_network_is_not_pruned() -> None:
    with pytest.raises(ValueError, match=r"a score in 'body\.1\.weight' is NaN or infinite"):
        Prune(fraction=0.2).run(Alone(), trained=trained(tiny([1.0] * 4, [float("nan"), 1.0])))


def test_weights_that_broke_their_mask_are_not_pruned(lenet: nn.Module) -> None:
    mask = Finished(
        {"mask.safetensors": Prune(fraction=0.2).run(Alone(), trained=trained(lenet)).files["mask.safetensors"]}
    )
    with pytest.raises(ValueError, match="the mask was not enforced"):
        Prune(fraction=0.2).run(Alone(), trained=trained(lenet), mask=mask)


def test_a_mask_of_another_network_is_not_pruned_further(lenet: nn.Module) -> None:
    mask = Finished({"mask.safetensors": Mask({"other": torch.ones(2, dtype=torch.bool)}).to_bytes()})
    with pytest.raises(ValueError, match="the mask does not fit"):
        Prune(fraction=0.2).run(Alone(), trained=trained(lenet), mask=mask)


def test_the_shuffled_control_keeps_every_layers_count_and_little_else(lenet: nn.Module) -> None:
    ticket = Prune(fraction=0.9).run(Alone(), trained=trained(lenet))
    control = ShuffleMask(seed=1).run(Alone(), mask=Finished(ticket.files))
    assert control.metrics["layers"] == ticket.metrics["layers"]
    assert control.metrics["digest"] != ticket.metrics["digest"]
    assert kept_by(control).iou(kept_by(ticket)) < 0.15
    assert control.files == ShuffleMask(seed=1).run(Alone(), mask=Finished(ticket.files)).files
    assert control.files != ShuffleMask(seed=2).run(Alone(), mask=Finished(ticket.files)).files
