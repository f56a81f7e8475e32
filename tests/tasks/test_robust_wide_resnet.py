"""Wide residual networks with stages of their own: alike they are WRN, unlike they have the published channels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tasks.data import Signature
from tasks.models.channels import channel_groups
from tasks.models.initialise import initialise
from tasks.models.prunable import prunable
from tasks.models.robust_wide_resnet import RobustWideResNet
from tasks.models.wide_resnet import WideResNet

CIFAR = Signature(3, 32, 32, 10, mean=(0.3, 0.5, 0.4), std=(0.2, 0.25, 0.3))
MNIST = Signature(1, 28, 28, 10, mean=(0.13,), std=(0.31,))


def on_meta(architecture: RobustWideResNet | WideResNet) -> nn.Module:
    with torch.device("meta"):
        return architecture.build(CIFAR)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("depth", "factor"), [(10, 1), (16, 2)])
def test_with_stages_alike_it_is_a_wide_resnet(depth: int, factor: int) -> None:
    blocks = (depth - 4) // 6
    wide = initialise(WideResNet(depth=depth, widen_factor=factor), CIFAR, 0).eval()
    ours = RobustWideResNet(depths=(blocks,) * 3, widths=(factor,) * 3)
    copied = initialise(ours, CIFAR, 1).eval()
    assert {name: tensor.shape for name, tensor in copied.state_dict().items()} == {
        name: tensor.shape for name, tensor in wide.state_dict().items()
    }
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.equal(copied(images), wide(images))
        copied.load_state_dict(wide.state_dict())
        assert torch.equal(copied(images), wide(images))
    drawn = initialise(ours, CIFAR, 0).state_dict()
    assert all(torch.equal(tensor, drawn[name]) for name, tensor in wide.state_dict().items())


def test_the_published_network_has_its_channels_and_size() -> None:
    published = on_meta(RobustWideResNet(depths=(5, 5, 5), widths=(20, 20, 8)))
    kernels = prunable(published)
    assert [kernels[f"body.stage{stage}_block5.conv2.weight"].shape[0] for stage in (1, 2, 3)] == [320, 640, 512]
    assert parameters(published) == pytest.approx(68.12e6, rel=1e-3)
    assert parameters(on_meta(WideResNet(depth=34, widen_factor=12))) == pytest.approx(66.46e6, rel=1e-3)


def test_the_default_has_the_published_proportions_and_a_lean_last_stage() -> None:
    widths = RobustWideResNet().widths
    assert [20 * width for width in widths] == [widths[0] * share for share in (20, 20, 8)]
    assert parameters(on_meta(RobustWideResNet())) < parameters(on_meta(WideResNet(depth=16, widen_factor=5)))


@pytest.mark.parametrize("widths", [(2, 1, 1), (4, 2, 1), (1, 3, 2)])
def test_a_stage_may_begin_with_as_many_channels_as_the_last_one_had(widths: tuple[int, int, int]) -> None:
    """16 x 2 = 32 x 1: the images shrink where the channels stay."""
    model = initialise(RobustWideResNet(depths=(1, 2, 1), widths=widths), MNIST, 0).eval()
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert model(images).shape == (2, 10)
        assert model.get_submodule("body")[:-4](images).shape == (2, 64 * widths[2], 7, 7)
    assert channel_groups(model, MNIST)


@pytest.mark.parametrize("fields", [{"depths": (0, 1, 1)}, {"widths": (1, 1)}, {"dropout": 1}])
def test_a_stage_that_cannot_be_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        RobustWideResNet.model_validate(fields)


def test_images_too_small_are_refused_by_its_own_name() -> None:
    with pytest.raises(ValueError, match="robust-wide-resnet needs images of at least 4x4"):
        RobustWideResNet().build(Signature(1, 3, 3, 10, mean=(0.1,), std=(0.3,)))
