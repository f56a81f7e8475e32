"""Whole channels pruned, and the smaller network that is left: the same function, trainable, nothing leaking."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from tasks.data import Dataset, Examples, Signature, Split
from tasks.data.mnist import Mnist
from tasks.measuring.evaluate import Evaluate
from tasks.models import Architecture
from tasks.models.channels import with_channels
from tasks.models.conv import Conv2
from tasks.models.initialise import initialise
from tasks.models.lenet import LeNet300100
from tasks.models.mobilenet import MobileNetV2
from tasks.models.network import Network
from tasks.models.prunable import prunable
from tasks.models.resnet_cifar import ResNet20
from tasks.models.small_cnn import SmallCNN
from tasks.models.weights import load_weights, restore, weights_to_bytes
from tasks.models.wide_resnet import WideResNet
from tasks.pruning import compact
from tasks.pruning.channels import PruneChannels
from tasks.pruning.compact import Compact
from tasks.pruning.mask import Mask
from tasks.task import Alone, Task
from tests.tasks import digits
from tests.tasks.training_toys import Blobs, Finished, Tiny, half_mask, toy, trained

CONV, HIDDEN, OUTPUT = "body.0.weight", "body.4.weight", "body.7.weight"
NORMED = Tiny(norm=True)
COLOUR = Signature(3, 8, 8, 10, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
FULL = os.environ.get("HEDGEROW_DATA")


class Colours(Dataset):
    """Coloured noise of 8 x 8 pixels."""

    kind: Literal["toy-colours"] = "toy-colours"

    def fingerprint(self) -> str:
        return "toy"

    def signature(self) -> Signature:
        return COLOUR

    def load(self, split: Split) -> Examples:
        images = torch.randint(0, 256, (16, 3, 8, 8), generator=torch.Generator().manual_seed(0))
        return Examples(images.to(torch.uint8), torch.arange(16) % 10)


def finished(network: nn.Module, **metrics: Any) -> Finished:
    content = weights_to_bytes(network)
    files = {"weights.safetensors": content, "best.safetensors": content}
    return Finished({"step": 0, "density": 1.0, **metrics}, files)


def done(task: Task, **inputs: Finished) -> Finished:
    result = task.run(Alone(), **inputs)
    return Finished(result.metrics, result.files)


def step(mask: Mask) -> Finished:
    return Finished(mask.summary(), {"mask.safetensors": mask.to_bytes()})


def mask_of(step: Finished) -> Mask:
    return Mask.from_bytes(step.read("mask.safetensors"))


def lively(architecture: Architecture, data: Signature) -> nn.Module:
    """A network whose biases, norms and running statistics are none of them zero or one."""
    network = initialise(architecture, data, 0)
    draw = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if tensor.dim() == 1 and "mean" not in name:
            tensor.uniform_(0.5, 1.5, generator=draw)
        elif name.endswith("running_mean"):
            tensor.normal_(0, 0.3, generator=draw)
    return network


def pruned(step: Finished, architecture: Architecture = NORMED, data: Any = None, **fields: Any) -> Finished:
    inputs = {"mask": step} if step.metrics["density"] < 1 else {}
    return done(PruneChannels(data=data or Blobs(), architecture=architecture, **fields), trained=step, **inputs)


def images(data: Signature) -> torch.Tensor:
    return torch.rand(4, data.channels, data.height, data.width, generator=torch.Generator().manual_seed(2))


def logits(architecture: Architecture, data: Signature, content: bytes) -> torch.Tensor:
    network = initialise(architecture, data, 0)
    restore(network, content)
    with torch.no_grad():
        result: torch.Tensor = network.eval()(images(data))
    return result


def architecture_of(step: Finished) -> Architecture:
    built: Architecture = TypeAdapter(Architecture).validate_python(step.metrics["architecture"])
    return built


def scaled(*rows: float) -> Finished:
    """The tiny network whose hidden units have filters of all these values."""
    network = initialise(Tiny(), Blobs().signature(), 0)
    prunable(network)[HIDDEN].data = torch.tensor(rows, dtype=torch.float32).view(-1, 1).expand(-1, 48).contiguous()
    return finished(network)


def test_the_filters_of_the_smallest_norm_go_with_their_columns() -> None:
    rows = [5.0, -4.0, 0.1, 3.0, -0.2, 6.0, 7.0, 8.0, 9.0, 0.3, 10.0, 11.0]
    step = pruned(scaled(*rows), Tiny(), fraction=0.25)
    mask = mask_of(step)
    gone = [place for place in range(12) if not mask[HIDDEN][place].any()]
    assert gone == [2, 4, 9]
    assert not mask[OUTPUT][:, gone].any()
    assert mask[OUTPUT].sum() == 4 * 9
    assert step.metrics["widths"] == {CONV: 2, HIDDEN: 9}


def test_behind_a_flattening_all_positions_of_a_channel_go() -> None:
    mask = mask_of(pruned(scaled(*range(1, 13)), Tiny(), fraction=0.25))
    (gone,) = (place for place in range(3) if not mask[CONV][place].any())
    kept = mask[HIDDEN][3:].view(9, 3, 16)
    assert not kept[:, gone].any()
    assert kept.sum() == 9 * 2 * 16


def test_norms_rank_as_they_are_named() -> None:
    network = initialise(Tiny(), Blobs().signature(), 0)
    kernel = prunable(network)[CONV].data
    kernel.zero_()
    kernel[0, 0, 0, 0] = 3  # L1 3, L2 3
    kernel[1] = 0.5  # L1 4.5, L2 1.5
    kernel[2] = 2
    for norm, weakest in (("l1", 0), ("l2", 1)):
        mask = mask_of(pruned(finished(network), Tiny(), norm=norm, fraction=0.3))
        assert not mask[CONV][weakest].any()
        assert mask[CONV].sum() == 18


def test_globally_layers_compete_and_the_best_channel_of_each_stays() -> None:
    network = initialise(Tiny(), Blobs().signature(), 0)
    prunable(network)[CONV].data.mul_(1e-3)
    step = pruned(finished(network), Tiny(), scope="global", fraction=0.2)
    assert step.metrics["widths"] == {CONV: 1, HIDDEN: 11}
    with pytest.raises(ValueError, match=r"0\.95 of the 15 channels left is 14, but only 13 can go"):
        pruned(finished(network), Tiny(), scope="global", fraction=0.95)
    layerwise = pruned(finished(network), Tiny(), fraction=0.95)
    assert layerwise.metrics["widths"] == {CONV: 1, HIDDEN: 1}


@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_a_density_is_reached_channel_by_channel_and_no_more_than_that(scope: str) -> None:
    start, kept, channels = finished(initialise(Tiny(), Blobs().signature(), 0)), 651, 15
    while channels > 2:
        step = pruned(start, Tiny(), scope=scope, density=(kept - 0.5) / 651)
        mask, before = mask_of(step), channels
        channels = sum(step.metrics["widths"].values())
        assert channels == before - 1
        assert mask.nnz == step.metrics["kept"] < kept
        assert mask.density == step.metrics["density"]
        kept = mask.nnz
    assert kept == 9 + 16 + 4  # one channel, one unit
    with pytest.raises(ValueError, match=r"density 0.04 is out of reach.*29 of 651 weights stay, density 0.0445"):
        pruned(start, Tiny(), scope=scope, density=0.04)


def test_a_second_round_goes_on_from_the_first() -> None:
    first = pruned(trained(toy(architecture=NORMED)), fraction=0.5)
    retrained = trained(toy(architecture=NORMED), mask=first)
    second = pruned(retrained, fraction=0.5)
    assert mask_of(second).nested_in(mask_of(first))
    assert [first.metrics["widths"], second.metrics["widths"]] == [{CONV: 1, HIDDEN: 6}, {CONV: 1, HIDDEN: 3}]


def test_misfits_are_found_without_weights() -> None:
    def check(architecture: Architecture, data: Signature, **fields: Any) -> None:
        with torch.device("meta"):
            network = architecture.build(data)
        assert isinstance(network, Network)
        PruneChannels(data=Blobs(), architecture=architecture, **fields).check_network(network)

    check(Tiny(), Blobs().signature(), density=0.05)
    with pytest.raises(ValueError, match=r"density 0\.04 is out of reach"):
        check(Tiny(), Blobs().signature(), density=0.04)
    with pytest.raises(ValueError, match=r"fraction 0\.01 of the 15 channels left in 2 layers removes none"):
        check(Tiny(), Blobs().signature(), fraction=0.01)
    output = nn.Linear(36, 4)
    single = Network(Blobs().signature(), nn.Sequential(nn.Flatten(), output), output)
    for task in (
        PruneChannels(data=Blobs(), architecture=Tiny(), density=0.5),
        Compact(data=Blobs(), architecture=Tiny()),
    ):
        with pytest.raises(ValueError, match="no channels that could be removed"):
            task.check_network(single)
    with pytest.raises(ValidationError, match="give either fraction or density"):
        PruneChannels(data=Blobs(), architecture=Tiny())


@pytest.mark.parametrize(
    "architecture",
    [ResNet20(width=4), WideResNet(depth=10, widen_factor=1), MobileNetV2(), Conv2(), LeNet300100()],
    ids=lambda each: each.kind,
)
def test_the_smaller_network_computes_what_the_masked_one_does(architecture: Architecture) -> None:
    data = Colours()
    network = lively(architecture, COLOUR)
    step = pruned(finished(network), architecture, data, density=0.6)
    small = done(Compact(data=data, architecture=architecture), trained=finished(network), mask=step)
    mask_of(step).apply_(network)
    masked = logits(architecture, COLOUR, weights_to_bytes(network))
    compacted = logits(architecture_of(small), COLOUR, small.read("weights.safetensors"))
    assert masked.std(dim=0).min() > 0  # else the images would say nothing
    assert (masked - compacted).abs().max() <= 1e-5 * masked.abs().max()
    kernels = load_weights(small.read("weights.safetensors")).kernels()
    assert sum(each.numel() for each in kernels.values()) == step.metrics["kept"]
    assert small.metrics["parameters"] < 0.7 * small.metrics["before"]
    assert small.metrics["widths"] == step.metrics["widths"]


def test_residual_streams_keep_their_width() -> None:
    mask = mask_of(pruned(finished(lively(ResNet20(width=4), COLOUR)), ResNet20(width=4), Colours(), fraction=0.75))
    assert mask["body.output.weight"].all()
    assert mask["body.conv.weight"].all()
    assert mask["body.stage3_block3.conv2.weight"].any(dim=(1, 2, 3)).all()
    assert mask.layer_nnz["body.stage3_block3.conv1.weight"] == 4 * 16 * 9


def test_nothing_of_the_bias_or_the_norm_of_a_removed_channel_gets_through() -> None:
    step = pruned(finished(lively(NORMED, Blobs().signature())), fraction=0.5)
    network = lively(NORMED, Blobs().signature())
    mask_of(step).apply_(network)
    before = logits(NORMED, Blobs().signature(), weights_to_bytes(network))
    state = network.state_dict()
    for kernel, tensors in ((CONV, ("body.0.bias", "body.1.bias", "body.1.running_mean")), (HIDDEN, ("body.4.bias",))):
        gone = ~mask_of(step)[kernel].flatten(1).any(dim=1)
        assert gone.any()
        for tensor in tensors:
            state[tensor][gone] = 1e3
    assert torch.equal(before, logits(NORMED, Blobs().signature(), weights_to_bytes(network)))


def test_training_goes_on_under_the_mask_and_ends_as_structured_as_it_began() -> None:
    dense = trained(toy(architecture=NORMED))
    step = pruned(dense, fraction=0.5)
    retrained = trained(toy(architecture=NORMED, schedule_from="zero"), start=dense, mask=step)
    assert mask_of(retrained) == mask_of(step)
    small = done(Compact(data=Blobs(), architecture=NORMED), trained=retrained)
    assert small.metrics["widths"] == {CONV: 1, HIDDEN: 6}
    assert small.metrics["equivalence"]["difference"] < 1e-5
    assert small.metrics["equivalence"]["examples"] == 44
    for name in ("weights.safetensors", "best.safetensors"):
        whole = logits(NORMED, Blobs().signature(), retrained.read(name))
        assert torch.allclose(whole, logits(architecture_of(small), Blobs().signature(), small.read(name)), atol=1e-5)


def test_the_smaller_network_can_be_trained_evaluated_and_made_smaller_again() -> None:
    dense = trained(toy())
    small = done(Compact(data=Blobs(), architecture=Tiny()), trained=dense, mask=pruned(dense, Tiny(), fraction=0.5))
    smaller = architecture_of(small)
    further = trained(toy(architecture=smaller, schedule_from="zero"), start=small)
    assert further.metrics["density"] == 1
    assert further.metrics["parameters"] == small.metrics["parameters"] == 10 + 6 * 17 + 4 * 7
    again = pruned(further, smaller, fraction=0.5)
    least = done(Compact(data=Blobs(), architecture=smaller), trained=further, mask=again)
    assert logits(architecture_of(least), Blobs().signature(), least.read("best.safetensors")).shape == (4, 4)
    evaluation = Evaluate(data=Blobs(), architecture=smaller, split="validation")
    assert done(evaluation, trained=small).metrics["examples"] == 40


def test_weights_pruned_one_by_one_stay_pruned_in_the_smaller_network() -> None:
    dense = trained(toy())
    half = half_mask(dense)
    sparse = trained(toy(), mask=half)
    both = pruned(sparse, Tiny(), fraction=0.5)
    assert mask_of(both).nested_in(mask_of(half))
    small = done(Compact(data=Blobs(), architecture=Tiny()), trained=sparse, mask=both)
    mask = mask_of(small)
    assert mask.nnz == mask_of(both).nnz
    assert 0.3 < small.metrics["density"] == mask.density < 0.7
    mask.audit_weights(load_weights(small.read("weights.safetensors")).kernels())
    on = trained(toy(architecture=architecture_of(small), schedule_from="zero"), start=small)
    assert mask_of(on) == mask


def leaves_columns(mask: dict[str, torch.Tensor]) -> None:
    mask[HIDDEN][3] = False


def leaves_all_channels(mask: dict[str, torch.Tensor]) -> None:
    mask[HIDDEN][:, 5] = False


def leaves_nothing(mask: dict[str, torch.Tensor]) -> None:
    mask[CONV][:] = False
    mask[HIDDEN][:] = False


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (leaves_columns, rf"channel 3 of '{HIDDEN}' has no weights left, but '{OUTPUT}' takes it in with 4"),
        (leaves_all_channels, "not structured: it keeps 639 of 651 weights, and some in every channel"),
        (leaves_nothing, f"the mask leaves no channel of '{CONV}'"),
    ],
    ids=["columns", "unstructured", "nothing"],
)
def test_a_mask_that_is_not_structured_is_refused(
    change: Callable[[dict[str, torch.Tensor]], None], problem: str
) -> None:
    network = initialise(Tiny(), Blobs().signature(), 0)
    kept = dict(Mask.ones_like(prunable(network)))
    change(kept)
    with pytest.raises(ValueError, match=problem) as caught:
        done(Compact(data=Blobs(), architecture=Tiny()), trained=finished(network), mask=step(Mask(kept)))
    assert "\n" not in str(caught.value)


def test_a_dense_network_without_a_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="trained is dense, and no mask is given"):
        done(Compact(data=Blobs(), architecture=Tiny()), trained=trained(toy()))


def test_a_smaller_network_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(tensors: Any, choices: Any) -> Any:
        return {name: each * (1 + 1e-3 * (name == HIDDEN)) for name, each in with_channels(tensors, choices).items()}

    dense = trained(toy())
    step = pruned(dense, Tiny(), fraction=0.5)
    monkeypatch.setattr(compact, "with_channels", forgetful)
    with pytest.raises(ValueError, match="the smaller network is another one: on 44 images a logit differs by"):
        done(Compact(data=Blobs(), architecture=Tiny()), trained=dense, mask=step)


def test_results_are_the_same_bytes_and_leave_the_global_generator() -> None:
    dense = trained(toy())

    def once(seed: int) -> tuple[dict[str, bytes], dict[str, bytes]]:
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        step = pruned(dense, Tiny(), fraction=0.5)
        small = done(Compact(data=Blobs(), architecture=Tiny()), trained=dense, mask=step)
        assert torch.equal(torch.get_rng_state(), state)
        return dict(step.files), dict(small.files)

    assert once(1) == once(2)


def half_the_channels(data: Dataset, epochs: int) -> tuple[float, float, Finished]:
    """Accuracies of a dense network and of half of its channels after half as much training, and the smaller one."""
    training = digits.training("standard").model_copy(update={"data": data, "epochs": epochs})
    dense = trained(training)
    mask = pruned(dense, SmallCNN(), data, fraction=0.5)
    again = training.model_copy(update={"epochs": epochs // 2, "schedule_from": "zero"})
    tuned = trained(again, start=dense, mask=mask)
    small = done(Compact(data=data, architecture=SmallCNN()), trained=tuned)
    return dense.metrics["last"]["accuracy"], tuned.metrics["last"]["accuracy"], small


def test_half_of_the_channels_do_nearly_as_well_with_a_quarter_of_the_weights() -> None:
    dense, tuned, small = half_the_channels(digits.DATA, epochs=4)
    assert dense > 0.95
    assert tuned > dense - 0.02
    assert small.metrics["parameters"] < 0.27 * small.metrics["before"]
    assert small.metrics["equivalence"]["difference"] < 1e-4


@pytest.mark.slow
@pytest.mark.skipif(FULL is None, reason="HEDGEROW_DATA names no folder with MNIST")
def test_half_of_the_channels_do_nearly_as_well_on_mnist() -> None:
    dense, tuned, small = half_the_channels(Mnist(), epochs=4)
    assert dense > 0.98
    assert tuned > dense - 0.005
    assert small.metrics["parameters"] < 0.27 * small.metrics["before"]
