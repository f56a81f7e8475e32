"""HYDRA: the mask is learned, the weights stand still, and an interruption changes nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.func import functional_call
from torch.nn import functional as F

from tasks.models.initialise import initialise
from tasks.models.prunable import prunable
from tasks.models.weights import load_tensors, load_weights, restore
from tasks.objectives.awp import AWP
from tasks.objectives.pgd import PGD
from tasks.optimizers.adam import Adam
from tasks.optimizers.sgd import SGD
from tasks.pruning.hydra import Hydra, _Scored
from tasks.pruning.mask import Mask
from tasks.pruning.prune import Prune
from tasks.task import Alone
from tasks.training.loop import Diverged
from tests.tasks.training_toys import Blobs, Finished, Tiny, Watch, half_mask, history, resumed, toy, trained

KERNELS = {"body.0.weight": 27, "body.4.weight": 576, "body.7.weight": 48}


def search(**fields: Any) -> Hydra:
    """A search of 18 steps on the toy data, unless said otherwise."""
    return Hydra(
        **{
            "data": Blobs(),
            "architecture": Tiny(),
            "density": 0.25,
            "optimizer": SGD(learning_rate=0.5, momentum=0.9),
            "epochs": 3,
            "batch_size": 8,
            **fields,
        }
    )


def mask_of(step: Finished) -> Mask:
    return Mask.from_bytes(step.read("mask.safetensors"))


@pytest.fixture(scope="module")
def dense() -> Finished:
    return trained(toy())


@pytest.fixture(scope="module")
def normed() -> Finished:
    return trained(toy(architecture=Tiny(norm=True, dropout=0.5)))


def test_weights_are_bit_identical_where_they_are_kept(normed: Finished) -> None:
    """Biases, norms and running statistics too."""
    task = search(architecture=Tiny(norm=True, dropout=0.5), optimizer=Adam(learning_rate=0.1, weight_decay=0.01))
    found = trained(task, trained=normed)
    before, after = (load_weights(step.read("weights.safetensors")) for step in (normed, found))
    mask = mask_of(found)
    assert before.tensors.keys() == after.tensors.keys()
    for name, tensor in before.tensors.items():
        expected = tensor.masked_fill(~mask[name], 0) if name in mask else tensor
        assert torch.equal(expected, after.tensors[name]), name
    assert found.metrics["moved"] > 0.1
    assert mask != mask_of(trained(Prune(density=0.25, scope="uniform"), trained=normed))


@pytest.mark.parametrize("density", [0.03, 0.25, 0.5])
def test_every_kernel_keeps_the_same_share_to_the_count(density: float, dense: Finished) -> None:
    mask = mask_of(trained(search(density=density, epochs=1), trained=dense))
    pruned = mask_of(trained(Prune(density=density, scope="uniform"), trained=dense))
    assert mask.layer_nnz == pruned.layer_nnz
    assert mask.nnz == round(density * sum(KERNELS.values()))
    assert all(abs(mask.layer_nnz[name] - density * size) <= 1 for name, size in KERNELS.items())


def test_the_beginning_is_magnitude_pruning(dense: Finished) -> None:
    """A rate too small to move a score across another."""
    found = trained(search(epochs=1, optimizer=SGD(learning_rate=1e-12)), trained=dense)
    assert found.metrics["moved"] == 0
    assert mask_of(found) == mask_of(trained(Prune(density=0.25, scope="uniform"), trained=dense))


def test_scores_begin_at_the_published_scale(dense: Finished) -> None:
    model = initialise(Tiny(), Blobs().signature(), 0)
    restore(model, dense.read("weights.safetensors"))
    kernels = {name: kernel.detach().clone() for name, kernel in prunable(model).items()}
    scored = _Scored(model, 0.25)
    fans = {"body.0.weight": 9, "body.4.weight": 48, "body.7.weight": 12}
    for name, scores in zip(scored.weights, scored.scores, strict=True):
        kernel = kernels[name]
        assert torch.allclose(scores, math.sqrt(6 / fans[name]) * kernel / kernel.abs().max())


def test_scores_get_the_gradient_of_a_selection_that_is_differentiable(dense: Finished) -> None:
    """Against autograd: w times (1 where kept, else 0, plus |s| - |s|.detach()), kept or not, negative scores too."""
    model = initialise(Tiny(), Blobs().signature(), 0)
    restore(model, dense.read("weights.safetensors"))
    kernels = {name: kernel.detach().clone() for name, kernel in prunable(model).items()}
    images, labels = torch.rand(8, 1, 6, 6), torch.arange(8) % 4
    scored = _Scored(model, 0.25)
    mask = scored.mask()
    scores = {name: score.detach().clone().requires_grad_() for name, score in zip(kernels, scored.scores, strict=True)}
    effective = {
        name: kernel * (mask[name] + scores[name].abs() - scores[name].abs().detach())
        for name, kernel in kernels.items()
    }
    F.cross_entropy(functional_call(model, effective, (images,)), labels).backward()
    F.cross_entropy(model(images), labels).backward()
    for name, score in zip(kernels, scored.scores, strict=True):
        expected = scores[name].grad
        assert expected is not None
        assert expected[~mask[name]].any(), "a pruned weight may come back"
        assert torch.allclose(score.grad, expected, atol=1e-6)
    assert all(kernel.grad is None for kernel in prunable(model).values())


def test_ties_go_to_the_earlier_position() -> None:
    model = initialise(Tiny(), Blobs().signature(), 0)
    for kernel in prunable(model).values():
        kernel.detach().fill_(0.5)
    mask = _Scored(model, 0.25).mask()
    for name, size in KERNELS.items():
        kept = mask[name].flatten()
        assert kept[: int(kept.sum())].all(), name
        assert int(kept.sum()) in (math.floor(size / 4), math.ceil(size / 4))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"optimizer": Adam(learning_rate=0.01), "schedule": "cosine"},
        {"objective": PGD(epsilon=0.1, steps=2)},
        {"objective": {"kind": "free", "epsilon": 0.1, "replay": 3}},
    ],
    ids=["sgd", "adam", "pgd", "free"],
)
def test_interrupted_anywhere_the_search_ends_with_the_same_bytes(fields: dict[str, Any], normed: Finished) -> None:
    task = search(architecture=Tiny(norm=True, dropout=0.5), **fields)
    straight = task.run(Watch(), trained=normed)
    assert straight.metrics["moved"] > 0
    for saves in range(1, 18):
        assert resumed(task, [saves], {"trained": normed}) == straight, f"interrupted after step {saves}"


def test_the_seed_decides_and_the_global_generator_does_not(dense: Finished) -> None:
    torch.manual_seed(1)
    first = search().run(Alone(), trained=dense)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert search().run(Alone(), trained=dense) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert search(seed=1).run(Alone(), trained=dense).files["mask.safetensors"] != first.files["mask.safetensors"]


def test_its_metrics_are_those_that_followers_ask_for(dense: Finished) -> None:
    found = trained(search(objective=PGD(epsilon=0.1, steps=2)), trained=dense)
    assert found.metrics["step"] == dense.metrics["step"], "the weights have learned nothing since"
    assert found.metrics["density"] == mask_of(found).density
    assert found.metrics["parameters"] == dense.metrics["parameters"]
    assert found.metrics["sample_steps"] == 3 * 44 * 3
    assert found.metrics["last"]["step"] == 18
    assert found.metrics["last"]["epoch"] == 3
    assert [entry["epoch"] for entry in history(found)] == [1, 2, 3]
    assert found.metrics["last"]["accuracy"] == history(found)[-1]["validation_accuracy"]
    assert load_tensors(found.read("best.safetensors")).keys() == load_tensors(found.read("weights.safetensors")).keys()


def test_fine_tuning_goes_on_from_the_result_under_its_mask(dense: Finished) -> None:
    found = trained(search(), trained=dense)
    tuned = trained(toy(schedule_from="zero"), start=found)
    assert mask_of(tuned) == mask_of(found)
    assert tuned.metrics["digest"] != found.metrics["digest"]


def test_what_cannot_be_searched_is_refused_before_any_step(dense: Finished) -> None:
    sparse = trained(toy(), mask=half_mask(dense))
    with pytest.raises(
        ValueError, match=r"hydra chooses among all weights, but trained has a density of 0\.\d+ already"
    ):
        search().run(Watch(saves=1), trained=sparse)
    with pytest.raises(ValueError, match=r"density 0\.01 leaves none of the 27 weights of 'body\.0\.weight'"):
        search(density=0.01).run(Watch(saves=1), trained=dense)
    with pytest.raises(ValidationError, match="less than 1"):
        search(density=1)


def test_a_search_that_diverges_says_so(dense: Finished) -> None:
    with pytest.raises(Diverged, match="training diverged"):
        search(optimizer=SGD(learning_rate=1e38, momentum=0.9), epochs=5).run(Alone(), trained=dense)


def test_an_objective_that_moves_weights_is_refused() -> None:
    with pytest.raises(
        ValueError, match="awp moves weights, and those of hydra stand still; give the objective inside"
    ):
        search(objective=AWP(objective=PGD(epsilon=0.1, steps=1)))
