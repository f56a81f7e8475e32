"""Matching channels: permutations are found again exactly, leave the function, and take masks along."""

from __future__ import annotations

import os
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load
from torch import nn

from tasks.analysis.alignment import Align
from tasks.analysis.interpolation import Interpolate
from tasks.analysis.matching import Matching
from tasks.analysis.matching.activation_matching import ActivationMatching
from tasks.analysis.matching.assignment import assign
from tasks.analysis.matching.weight_matching import WeightMatching
from tasks.data import Dataset, Signature
from tasks.data.mnist import Mnist
from tasks.data.mnist_mini import MnistMini
from tasks.models import Architecture
from tasks.models.channels import channel_groups, with_channels
from tasks.models.initialise import initialise
from tasks.models.linear import Linear
from tasks.models.network import Network
from tasks.models.resnet_cifar import ResNet20
from tasks.models.vit import ViT
from tasks.models.weights import load_weights, restore, weights_to_bytes
from tasks.optimizers.adam import Adam
from tasks.pruning.mask import Mask
from tasks.seeds import generator
from tasks.task import Alone
from tasks.training.train import Train
from tests.tasks.training_toys import Blobs, Finished, Tiny, half_mask, toy, trained

pytestmark = pytest.mark.usefixtures("one_thread")

MNIST = os.environ.get("HEDGEROW_DATA")

DATA = Blobs()
MATCHINGS = [WeightMatching(), ActivationMatching(examples=40)]


class MLP(Architecture):
    """Two hidden layers of one width, or none."""

    kind: Literal["test-mlp"] = "test-mlp"
    width: int = 256

    def build(self, data: Signature) -> nn.Module:
        size, width = data.channels * data.height * data.width, self.width
        output = Linear(width or size, data.classes)
        hidden = [Linear(size, width), nn.ReLU(), Linear(width, width), nn.ReLU()] if width else []
        return Network(data, nn.Sequential(nn.Flatten(), *hidden, output), output)


def align(architecture: Architecture, **fields: Any) -> Align:
    return Align(**{"data": DATA, "architecture": architecture, **fields})


def reordered(step: Finished, architecture: Architecture) -> tuple[Finished, dict[str, torch.Tensor]]:
    """The same network, and mask if there is one, with its channels in random order; and that order."""
    network = initialise(architecture, DATA.signature(), 0)
    assert isinstance(network, Network)
    chance = generator("reorder")
    choices = [
        (group, torch.randperm(group.size, generator=chance)) for group in channel_groups(network, DATA.signature())
    ]
    files = dict(step.files)
    for name in ("weights.safetensors", "best.safetensors"):
        restore(network, step.read(name))
        network.load_state_dict(with_channels(network.state_dict(), choices))
        files[name] = weights_to_bytes(network)
    if "mask.safetensors" in files:
        files["mask.safetensors"] = Mask(with_channels(Mask.from_bytes(files["mask.safetensors"]), choices)).to_bytes()
    return Finished(step.metrics, files), {group.uses[0].tensor: order for group, order in choices}


@pytest.mark.parametrize("seed", range(5))
def test_an_assignment_is_the_best_of_all_permutations(seed: int) -> None:
    gains = torch.randn(6, 6, generator=generator("gains", seed), dtype=torch.float64)
    best = max(permutations(range(6)), key=lambda order: sum(float(gains[i, j]) for i, j in enumerate(order)))
    assert assign(gains).tolist() == list(best)


def test_what_is_equal_or_nearly_so_stays_where_it_is() -> None:
    assert assign(torch.zeros(5, 5, dtype=torch.float64)).tolist() == [0, 1, 2, 3, 4]
    assert assign(torch.full((5, 5), -3.7, dtype=torch.float64)).tolist() == [0, 1, 2, 3, 4]
    dead = torch.zeros(5, 5, dtype=torch.float64)
    dead[1, 3] = 1.0  # two channels change places, three are dead
    assert assign(dead)[1] == 3
    assert (assign(dead) == torch.arange(5)).sum() == 3
    rounding = 1e-12 * torch.randn(40, 40, generator=generator("rounding"), dtype=torch.float64)
    assert assign(rounding + 5).tolist() == list(range(40)), "sums differ in their last bits between processors"


def test_weights_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        assign(torch.tensor([[1.0, float("nan")], [0.0, 1.0]], dtype=torch.float64))


@pytest.mark.parametrize("matching", MATCHINGS, ids=lambda matching: matching.kind)
@pytest.mark.parametrize(
    "architecture",
    [Tiny(), Tiny(norm=True), MLP(width=30), ResNet20(width=4)],
    ids=["flattened", "normed", "linear", "residual"],
)
def test_a_permuted_copy_is_recovered_exactly(architecture: Architecture, matching: Matching) -> None:
    first = trained(toy(architecture=architecture, epochs=1))
    second, order = reordered(first, architecture)
    assert second.read("weights.safetensors") != first.read("weights.safetensors")
    found = align(architecture, matching=matching).run(Alone(), first=first, second=second)
    assert found.files["weights.safetensors"] == first.read("weights.safetensors")
    assert found.files["best.safetensors"] == first.read("best.safetensors")
    undone = load(found.files["permutations.safetensors"])
    assert all(torch.equal(order[name][undone[name]], torch.arange(len(order[name]))) for name in order)
    assert found.metrics["objective"]["after"] > found.metrics["objective"]["before"]


@pytest.mark.parametrize("matching", MATCHINGS, ids=lambda matching: matching.kind)
def test_masks_travel_with_the_weights(matching: Matching) -> None:
    mask = half_mask(trained(toy(stop_at=0)))
    first = trained(toy(), mask=mask)
    second, _ = reordered(first, Tiny())
    found = align(Tiny(), matching=matching).run(Alone(), first=first, second=second)
    assert found.files["mask.safetensors"] == first.read("mask.safetensors")
    masks = found.metrics["masks"]
    assert masks["after"]["iou"] == 1
    assert masks["before"]["iou"] < 0.7
    assert masks["before"]["chance"] == masks["after"]["chance"] == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize("matching", MATCHINGS, ids=lambda matching: matching.kind)
@pytest.mark.parametrize("net", [Tiny(norm=True), ResNet20(width=4)], ids=["normed", "residual"])
def test_the_function_stays_and_the_likeness_grows(net: Architecture, matching: Matching) -> None:
    first, second = (trained(toy(architecture=net, seed=seed, init_seed=seed)) for seed in (0, 1))
    found = align(net, matching=matching).run(Alone(), first=first, second=second)
    assert found.metrics["function_change"] < 1e-4
    assert found.metrics["moved"] > 0.3
    assert found.metrics["objective"]["after"] > found.metrics["objective"]["before"]
    line = Interpolate(data=DATA, architecture=net, split="validation", points=3)
    before = line.run(Alone(), first=first, second=second).metrics
    after = line.run(Alone(), first=first, second=Finished(found.metrics, found.files)).metrics
    assert after["losses"][-1] == pytest.approx(before["losses"][-1], rel=1e-4)
    if isinstance(matching, WeightMatching):
        assert after["distance"] < before["distance"]


@pytest.mark.parametrize("of", ["bias", "scale"])
def test_biases_and_scales_alone_are_enough_to_match_by(of: str) -> None:
    """All kernels the same: whoever looks at kernels only sees channels that are alike."""
    net = Tiny(norm=True)
    model = initialise(net, DATA.signature(), 0)
    values = torch.linspace(-1, 1, 3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        model.get_parameter("body.0.bias" if of == "bias" else "body.1.weight").copy_(values)
    content = weights_to_bytes(model)
    whole = trained(toy(architecture=net, stop_at=0))
    first = Finished(whole.metrics, {**whole.files, "weights.safetensors": content})
    second, _ = reordered(first, net)
    assert second.read("weights.safetensors") != content
    assert align(net).run(Alone(), first=first, second=second).files["weights.safetensors"] == content


def test_an_alignment_does_not_depend_on_the_state_of_the_process() -> None:
    first, second = (trained(toy(seed=seed, init_seed=seed)) for seed in (0, 1))
    for matching in MATCHINGS:
        results = []
        for state in (1, 2):
            torch.manual_seed(state)
            before = torch.random.get_rng_state()
            results.append(align(Tiny(), matching=matching).run(Alone(), first=first, second=second))
            assert torch.equal(torch.random.get_rng_state(), before)
        assert results[0] == results[1]


def test_an_aligned_ticket_can_be_trained_on_and_stays_sparse() -> None:
    mask = half_mask(trained(toy(stop_at=0)))
    first, second = (trained(toy(seed=seed), mask=mask) for seed in (0, 1))
    aligned = trained(align(Tiny()), first=first, second=second)  # type: ignore[arg-type]
    further = trained(toy(schedule_from="zero"), start=aligned)
    assert further.read("mask.safetensors") == aligned.read("mask.safetensors")
    assert further.metrics["density"] == second.metrics["density"]
    kernels = load_weights(further.read("weights.safetensors")).kernels()
    Mask.from_bytes(aligned.read("mask.safetensors")).audit_weights(kernels)


@pytest.mark.parametrize(
    ("architecture", "words"),
    [(MLP(width=0), "no channels between its layers"), (ViT(patch=3, dim=8, depth=1, heads=2), "cannot be followed")],
)
def test_what_cannot_be_permuted_is_refused(architecture: Architecture, words: str) -> None:
    step = trained(toy(architecture=architecture, stop_at=0))
    with pytest.raises(ValueError, match=words) as refusal:
        align(architecture).run(Alone(), first=step, second=step)
    assert "\n" not in str(refusal.value)


def require_matched(data: Dataset, epochs: int) -> None:
    """Matching leaves less than a quarter of both barriers between wide networks of other initial weights."""
    net = MLP(width=256)
    first, second = (
        trained(
            Train(
                data=data,
                architecture=net,
                optimizer=Adam(learning_rate=1e-3),
                epochs=epochs,
                batch_size=60,
                seed=seed,
                init_seed=seed,
                validate_every=epochs,
            )
        )
        for seed in (0, 1)
    )
    line = Interpolate(data=data, architecture=net, points=11, examples=1000)
    naive = line.run(Alone(), first=first, second=second).metrics
    assert naive["error_barrier"] >= 0.06
    for matching in (WeightMatching(), ActivationMatching(examples=500)):
        task = Align(data=data, architecture=net, matching=matching)
        aligned = trained(task, first=first, second=second)  # type: ignore[arg-type]
        assert aligned.metrics["function_change"] < 1e-3
        matched = line.run(Alone(), first=first, second=aligned).metrics
        assert matched["error_barrier"] < 0.25 * naive["error_barrier"]
        assert matched["loss_barrier"] < 0.25 * naive["loss_barrier"]


def test_matching_takes_the_barrier_between_wide_networks_of_other_initial_weights_away() -> None:
    """Ainsworth et al. 2023, with few digits and epochs.

    Measured with four pairs of seeds, error barriers in points: as they are 6.2 to 16.6, weights matched 0.1 to 1.1,
    activations matched 0.5 to 1.2; loss barriers 0.76 to 0.83, 0.02 to 0.05, 0.01 to 0.03.
    """
    require_matched(MnistMini(validation=500, subset=3000), epochs=3)


@pytest.mark.slow
@pytest.mark.skipif(not MNIST, reason="needs HEDGEROW_DATA, a folder with MNIST")
def test_matching_takes_the_barrier_away_on_mnist() -> None:
    """Ainsworth et al. 2023, with 12,000 digits of MNIST and 8 epochs."""
    assert MNIST
    require_matched(Mnist(root=Path(MNIST), subset=12000), epochs=8)
