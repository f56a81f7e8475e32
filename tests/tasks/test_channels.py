"""The channels of networks: permuted together they change nothing, and no use of them is overlooked."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tasks.data import Signature
from tasks.models import Architecture
from tasks.models.channels import Channels, Use, channel_groups, with_channels
from tasks.models.compacted import Compacted
from tasks.models.conv import Conv2, Conv4, Conv6
from tasks.models.lenet import LeNet300100
from tasks.models.linear import WORTHWHILE, Linear
from tasks.models.mobilenet import MobileNetV2
from tasks.models.network import Network
from tasks.models.prunable import prunable
from tasks.models.quantised import Quantised
from tasks.models.resnet import ResNet18, ResNet50
from tasks.models.resnet_cifar import ResNet20, ResNet32
from tasks.models.small_cnn import SmallCNN
from tasks.models.torchvision import Torchvision
from tasks.models.vgg import VGG16
from tasks.models.vit import ViT
from tasks.models.wide_resnet import WideResNet
from tasks.pruning.mask import Mask
from tests.tasks.training_toys import Blobs, Tiny

HIDDEN = "body.4.weight"
GREY = Signature(1, 28, 28, 10, mean=(0.13,), std=(0.31,))
COLOUR = Signature(3, 32, 32, 10, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
SMALL = replace(COLOUR, height=8, width=8)

FOLLOWED: list[tuple[Architecture, Signature]] = [
    (LeNet300100(), GREY),
    (SmallCNN(), GREY),
    (Conv2(), SMALL),
    (Conv4(), SMALL),
    (Conv6(), GREY),
    (VGG16(), COLOUR),
    (ResNet20(width=4), SMALL),
    (ResNet32(width=4), SMALL),
    (ResNet18(), SMALL),
    (ResNet50(), SMALL),
    (WideResNet(depth=10, widen_factor=2), SMALL),
    (WideResNet(depth=16, widen_factor=1), SMALL),  # whose first stage has no convolution beside its shortcuts
    (MobileNetV2(), SMALL),
    (Torchvision(name="squeezenet1_1"), COLOUR),  # concatenates
    (Torchvision(name="mobilenet_v3_small"), COLOUR),  # multiplies
    (Quantised(base=Conv2(), after=("conv1", "pool1"), step=1e-6), SMALL),
]


def lively(architecture: Architecture, data: Signature) -> Network:
    """A network none of whose tensors is the same for two channels, in evaluation mode."""
    torch.manual_seed(0)
    network = architecture.build(data)
    assert isinstance(network, Network)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight.data, layer.running_var):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5)
            for tensor in (layer.bias.data, layer.running_mean):
                assert tensor is not None
                tensor.normal_(0, 0.3)
        elif isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None:
            layer.bias.data.normal_(0, 0.1)
    return network.eval()


def images_for(data: Signature) -> torch.Tensor:
    return torch.rand(1, data.channels, data.height, data.width, generator=torch.Generator().manual_seed(1))


def change(network: Network, choices: list[tuple[Channels, torch.Tensor]], images: torch.Tensor) -> float:
    """By how much the logits change when channels are put in another order, in relation to the largest."""
    other = with_channels(network.state_dict(), choices)
    with torch.no_grad():
        logits = network(images)
        moved = torch.func.functional_call(network, other, (images,))
        return float((moved - logits).abs().max() / logits.abs().max())


def random_order(size: int) -> torch.Tensor:
    """A permutation that leaves nothing where it was."""
    return torch.randperm(size).roll(1) if size < 3 else torch.arange(size).roll(int(torch.randint(1, size, ())))


def named(given: object) -> str:
    """Architectures by their kind, their data by nothing."""
    return str(getattr(given, "name", getattr(given, "kind", "")))


@pytest.mark.parametrize(("architecture", "data"), FOLLOWED, ids=named)
def test_permuting_all_channels_at_random_leaves_the_function(architecture: Architecture, data: Signature) -> None:
    network = lively(architecture, data)
    choices = [(group, torch.randperm(group.size)) for group in channel_groups(network, data)]
    before = network.state_dict()
    after = with_channels(before, choices)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert set(prunable(network)) <= set(moved)  # the test would pass on groups that are not there
    assert change(network, choices, images_for(data)) < 1e-4


@pytest.mark.parametrize("architecture", [Conv2(), ResNet20(width=4)], ids=named)
def test_any_group_can_be_permuted_by_itself(architecture: Architecture) -> None:
    network, images = lively(architecture, SMALL), images_for(SMALL)
    for group in channel_groups(network, SMALL):
        assert change(network, [(group, random_order(group.size))], images) < 1e-4, group.kernel


@pytest.mark.parametrize("architecture", [Conv2(), ResNet20(width=4)], ids=named)
def test_a_permutation_that_forgets_one_use_changes_the_function(architecture: Architecture) -> None:
    network, images = lively(architecture, SMALL), images_for(SMALL)
    for group in channel_groups(network, SMALL):
        for forgotten in group.uses:
            others = Channels(group.size, tuple(use for use in group.uses if use != forgotten), group.stream)
            assert change(network, [(others, random_order(group.size))], images) > 1e-4, forgotten


def test_groups_of_a_convolutional_network_name_kernels_biases_and_flattened_columns() -> None:
    conv1, conv2, hidden1, hidden2 = channel_groups(lively(Conv2(), SMALL), SMALL)
    assert conv1 == Channels(
        64, (Use("body.conv1.weight", 0), Use("body.conv1.bias", 0), Use("body.conv2.weight", 1)), stream=False
    )
    assert conv2.uses[-1] == Use("body.hidden1.weight", 1, span=16)  # 4 x 4 pixels are left of a channel
    assert hidden1.uses[-1] == Use("body.hidden2.weight", 1)
    assert hidden2.kernel == "body.hidden2.weight"
    assert [group.size for group in (conv2, hidden1, hidden2)] == [64, 256, 256]


def test_norms_and_their_running_statistics_go_with_their_channels() -> None:
    groups = channel_groups(lively(VGG16(), COLOUR), COLOUR)
    norm = {f"body.norm1_1.{name}" for name in ("weight", "bias", "running_mean", "running_var")}
    assert norm < {use.tensor for use in groups[0].uses}
    assert not any(use.tensor.endswith("num_batches_tracked") for group in groups for use in group.uses)


def test_a_residual_stream_is_one_group_and_the_channels_inside_of_blocks_are_none_of_it() -> None:
    groups = channel_groups(lively(WideResNet(depth=16, widen_factor=1), SMALL), SMALL)
    streams = [group for group in groups if group.stream]
    assert [group.size for group in streams] == [16, 32, 64]
    assert Counter(group.stream for group in groups) == {True: 3, False: 6}
    adding = {use.tensor for use in streams[0].uses if use.axis == 0 and "conv" in use.tensor}
    assert adding == {"body.conv.weight", "body.stage1_block1.conv2.weight", "body.stage1_block2.conv2.weight"}


def test_a_shortcut_padded_with_zeros_carries_the_narrow_stream_on_and_begins_another() -> None:
    streams = [group for group in channel_groups(lively(ResNet20(), SMALL), SMALL) if group.stream]
    assert [group.size for group in streams] == [16, 16, 32]
    columns = [use for group in streams for use in group.uses if use.tensor == "body.output.weight"]
    assert [use.first for use in columns] == [0, 16, 32]


def test_channels_are_followed_without_weights_and_the_network_stays_as_it_was() -> None:
    network = lively(ResNet20(width=4), SMALL).train()
    before, state = {name: each.clone() for name, each in network.state_dict().items()}, torch.get_rng_state()
    groups = channel_groups(network, SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training
    assert all(torch.equal(before[name], each) for name, each in network.state_dict().items())
    with torch.device("meta"):
        empty = ResNet20(width=4).build(SMALL)
    assert isinstance(empty, Network)
    assert channel_groups(empty, SMALL) == groups


def test_a_mask_is_permuted_with_its_weights() -> None:
    network = lively(ResNet20(width=4), SMALL)
    kernels, draw = prunable(network), torch.Generator().manual_seed(0)
    mask = Mask({name: torch.rand(each.shape, generator=draw) < 0.5 for name, each in kernels.items()})
    mask.apply_(network)
    choices = [(group, torch.randperm(group.size)) for group in channel_groups(network, SMALL)]
    permuted = Mask(with_channels(mask, choices))
    assert permuted != mask
    permuted.audit_weights({name: with_channels(network.state_dict(), choices)[name] for name in kernels})


def test_fewer_channels_make_smaller_tensors_and_leave_those_of_other_groups() -> None:
    network = lively(ResNet20(width=4), SMALL)
    narrow, wide = (group for group in channel_groups(network, SMALL) if group.stream and group.size == 4)
    before = network.state_dict()
    after = with_channels(before, [(narrow, torch.tensor([3, 1])), (wide, torch.tensor([0, 2, 3]))])
    columns = after["body.output.weight"]
    assert torch.equal(columns, before["body.output.weight"][:, [3, 1, 4, 6, 7, *range(8, 16)]])


def test_channels_of_grouped_convolutions_are_left_out() -> None:
    output = nn.Linear(6, 10)
    layers = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 6, 3)]
    network = Network(SMALL, nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), output), output)
    (last,) = channel_groups(network, SMALL)
    assert last.kernel == "body.3.weight"
    assert change(network, [(last, random_order(6))], images_for(SMALL)) < 1e-4


class Repeated(nn.Module):
    """A layer that is applied twice, to its own results."""

    def __init__(self, output: nn.Linear) -> None:
        super().__init__()
        self.embed, self.again, self.norm, self.output = Linear(192, 64), Linear(64, 64), nn.LayerNorm(64), output

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.embed(images.flatten(1)).relu()
        for _ in range(2):
            features = self.again(features).relu()
        logits: torch.Tensor = self.output(self.norm(features))
        return logits


def test_a_layer_applied_twice_ties_what_goes_in_to_what_comes_out_and_a_layer_norm_keeps_all() -> None:
    output = nn.Linear(64, 10)
    assert WORTHWHILE <= 64 * 64  # else the layers would be plain ones here
    network = Network(SMALL, Repeated(output), output)
    (group,) = channel_groups(network, SMALL)
    assert group.stream
    assert {(use.tensor, use.axis) for use in group.uses} >= {("body.again.weight", 0), ("body.again.weight", 1)}
    assert change(network.eval(), [(group, random_order(64))], images_for(SMALL)) < 1e-4


class Shuffled(nn.Module):
    """Features are added to themselves in another order."""

    def __init__(self, output: nn.Linear) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(192, 6), output

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.hidden(images.flatten(1)).unflatten(1, (6, 1, 1))
        logits: torch.Tensor = self.output((features[:, :3] + features[:, 3:]).flatten(1))
        return logits


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (ViT(dim=24, depth=1).build(SMALL).body, "_Transformer cannot be followed"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten()), "'body.1' is a GroupNorm"),
        (Shuffled(nn.Linear(3, 10)), "unflatten"),
    ],
    ids=["attention", "group-norm", "reshaped"],
)
def test_what_cannot_be_followed_is_named_in_one_line(body: nn.Module, problem: str) -> None:
    output = next(layer for layer in body.modules() if isinstance(layer, nn.Linear | nn.Conv2d))
    with pytest.raises(ValueError, match=problem) as caught:
        channel_groups(Network(SMALL, body, output), SMALL)
    assert "\n" not in str(caught.value)


def test_a_compacted_architecture_keeps_names_and_narrows_what_it_is_told_to() -> None:
    data = Blobs().signature()
    network = Compacted(base=Tiny(norm=True), widths={HIDDEN: 5}).build(data)
    shapes = {name: tuple(each.shape) for name, each in network.named_parameters()}
    assert shapes == {
        **{name: tuple(each.shape) for name, each in Tiny(norm=True).build(data).named_parameters()},
        "body.4.weight": (5, 48),
        "body.4.bias": (5,),
        "body.7.weight": (4, 5),
    }
    assert "in_features=48, out_features=5" in str(network)
    rounded = Quantised(base=Compacted(base=Conv2(), widths={"body.conv1.weight": 8}), after=("pool1",), step=0.1)
    assert rounded.build(SMALL)(images_for(SMALL)).shape == (1, 10)


@pytest.mark.parametrize(
    ("widths", "problem"),
    [
        ({"body.hidden": 5}, "'body.hidden' makes no channels that can go; allowed: body.0.weight, body.4.weight"),
        ({HIDDEN: 13}, f"13 channels of '{HIDDEN}', which makes 12"),
    ],
)
def test_widths_that_do_not_fit_are_refused(widths: dict[str, int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Compacted(base=Tiny(), widths=widths).build(Blobs().signature())
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Compacted(base=Tiny(), widths={HIDDEN: 0})
