"""A new output layer on an old body, and training from there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load

from tasks.data.mnist_mini import MnistMini
from tasks.data.partitions.class_ranges import ClassRanges
from tasks.models import Architecture
from tasks.models.lenet import LeNet300100
from tasks.models.resnet_cifar import ResNet20
from tasks.pruning.mask import Mask
from tasks.pruning.prune import Prune
from tasks.task import Alone
from tasks.training.fresh_head import FreshHead
from tests.tasks.training_toys import Blobs, Finished, Tiny, half_mask, toy, trained

HALF = MnistMini(validation=100, subset=200, partition=ClassRanges(parts=2, index=1))
WHOLE = MnistMini(validation=100, subset=200)
HEAD = ("body.7.weight", "body.7.bias")


def readied(start: Finished, mask: Finished | None = None, **fields: Any) -> Finished:
    given = {"start": start} if mask is None else {"start": start, "mask": mask}
    result = FreshHead(**{"data": Blobs(), "architecture": Tiny(norm=True), **fields}).run(Alone(), **given)
    return Finished(result.metrics, result.files)


@pytest.fixture(scope="module")
def start() -> Finished:
    """A trained network, so that running statistics of its norm are not those of the beginning."""
    return trained(toy(architecture=Tiny(norm=True)))


def test_the_body_with_its_statistics_stays_and_the_head_is_new(start: Finished) -> None:
    before = load(start.read("weights.safetensors"))
    after = load(readied(start, init_seed=7).read("weights.safetensors"))
    assert before.keys() == after.keys()
    assert before["body.1.running_mean"].any()
    differing = {name for name in before if not torch.equal(before[name], after[name])}
    assert differing == set(HEAD)


def test_the_head_depends_on_its_seed_alone(start: Finished) -> None:
    other = trained(toy(architecture=Tiny(norm=True), seed=3, init_seed=5))
    heads = []
    for given, seed in ((start, 1), (other, 1), (start, 2)):
        torch.manual_seed(len(heads))
        state = torch.get_rng_state()
        heads.append(load(readied(given, init_seed=seed).read("weights.safetensors"))[HEAD[0]])
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_the_head_of_the_same_seed_is_that_of_the_initial_network() -> None:
    initial = trained(toy(architecture=Tiny(norm=True), stop_at=0, init_seed=4))
    assert readied(initial, init_seed=4).read("weights.safetensors") == initial.read("weights.safetensors")


@pytest.mark.parametrize("architecture", [LeNet300100(), ResNet20(width=2)])
def test_a_head_fits_the_classes_of_its_data(architecture: Architecture) -> None:
    whole = trained(toy(data=WHOLE, architecture=architecture, stop_at=0))
    half = readied(whole, data=HALF, architecture=architecture)
    again = readied(half, data=WHOLE, architecture=architecture)
    heads = [load(step.read("weights.safetensors"))["body.output.weight"] for step in (whole, half, again)]
    assert [len(head) for head in heads] == [10, 5, 10]
    assert again.read("weights.safetensors") == whole.read("weights.safetensors")


def test_normalisation_is_that_of_the_new_data(monkeypatch: pytest.MonkeyPatch) -> None:
    start = trained(toy(stop_at=0))
    darker = replace(Blobs().signature(), mean=(0.1,))
    monkeypatch.setattr(Blobs, "signature", lambda self: darker)
    found = load(readied(start, architecture=Tiny()).read("weights.safetensors"))
    assert found["normalise.mean"].item() == pytest.approx(0.1)


def test_the_mask_keeps_all_of_the_new_head_and_the_rest_as_it_was(start: Finished) -> None:
    mask = half_mask(start)
    found = readied(start, mask)
    before, after = (Mask.from_bytes(step.read("mask.safetensors")) for step in (mask, found))
    assert before.layer_densities[HEAD[0]] < 1
    assert after.layer_densities[HEAD[0]] == 1
    assert all(torch.equal(before[name], after[name]) for name in before if name != HEAD[0])
    assert found.metrics["density"] == after.density < 1


def test_weights_are_not_pruned_here_so_that_a_control_can_begin_with_them(start: Finished) -> None:
    assert readied(start, half_mask(start)).read("weights.safetensors") == readied(start).read("weights.safetensors")


def test_training_begins_there_at_step_zero_and_sparse(start: Finished) -> None:
    ready = readied(start, half_mask(start))
    result = trained(toy(architecture=Tiny(norm=True)), start=ready)
    assert result.metrics["step"] == 18
    assert result.metrics["density"] == ready.metrics["density"]
    assert result.read("mask.safetensors") == ready.read("mask.safetensors")
    same = trained(toy(architecture=Tiny(norm=True)), start=readied(start), mask=ready)
    assert same.read("weights.safetensors") == result.read("weights.safetensors")


def test_a_ticket_with_its_own_head_is_the_training_under_its_mask() -> None:
    """From a file of initial weights or from their seed, training gives the same bits."""
    initial = trained(toy(stop_at=0))
    mask = trained_mask(initial)
    ready = readied(initial, mask, architecture=Tiny())
    assert (
        trained(toy(), start=ready).files["weights.safetensors"]
        == trained(toy(), mask=ready).files["weights.safetensors"]
    )


def trained_mask(initial: Finished) -> Finished:
    result = Prune(fraction=0.3, output_layer="exclude").run(Alone(), trained=initial)
    return Finished(result.metrics, result.files)


def test_another_body_is_refused(start: Finished) -> None:
    with pytest.raises(
        ValueError, match=r"the body does not fit: 'body\.1\.bias' is \(3,\) where it comes from and miss"
    ):
        readied(start, architecture=Tiny())
    with pytest.raises(ValueError, match=r"'body\.0\.bias' is \(3,\) where it comes from and missing here"):
        readied(start, data=WHOLE, architecture=LeNet300100())


def test_a_mask_of_another_body_is_refused(start: Finished) -> None:
    whole = trained(toy(data=WHOLE, architecture=LeNet300100(), stop_at=0))
    with pytest.raises(ValueError, match="the mask does not fit"):
        readied(start, half_mask(whole))
