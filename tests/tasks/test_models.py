"""Architectures: shapes, published sizes, normalisation inside, misfits, initialisation."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer, mobilenet_v2, resnet18, resnet34, resnet50, vgg16_bn

from tasks.component import kind_of, members
from tasks.data import Signature
from tasks.models import Architecture
from tasks.models.conv import Conv2, Conv4, Conv6
from tasks.models.initialise import initialise
from tasks.models.lenet import LeNet300100
from tasks.models.mobilenet import MobileNetV2
from tasks.models.prunable import output_layer, prunable
from tasks.models.resnet import ResNet18, ResNet34, ResNet50
from tasks.models.resnet_cifar import ResNet20, ResNet32
from tasks.models.vgg import VGG16
from tasks.models.vit import ViT
from tasks.models.wide_resnet import WideResNet


def signature(channels: int, size: int, classes: int = 10) -> Signature:
    return Signature(channels, size, size, classes, mean=(0.3, 0.5, 0.4)[:channels], std=(0.2, 0.25, 0.3)[:channels])


MNIST = signature(1, 28)
CIFAR = signature(3, 32)
SMALL: list[Architecture] = [
    LeNet300100(),
    Conv2(),
    Conv4(),
    Conv6(),
    ResNet20(width=4),
    ResNet32(width=4),
    ResNet18(),
    VGG16(),
    WideResNet(depth=10, widen_factor=1),
    MobileNetV2(),
    ViT(dim=24, depth=2),
]
NAMES = [kind_of(type(architecture)) for architecture in SMALL]


def on_meta(architecture: Architecture, data: Signature) -> nn.Module:
    with torch.device("meta"):
        return architecture.build(data)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def kernels(model: nn.Module) -> int:
    return sum(kernel.numel() for kernel in prunable(model).values())


def test_every_kind_is_found_by_its_name() -> None:
    kinds = {
        *(
            "lenet-300-100",
            "conv-2",
            "conv-4",
            "conv-6",
            "resnet-20",
            "resnet-32",
            "resnet-18",
            "resnet-34",
            "resnet-50",
        ),
        *("vgg-16-bn", "wide-resnet", "mobilenet-v2", "vit"),
    }
    assert kinds <= set(members(Architecture))


@pytest.mark.parametrize("architecture", SMALL, ids=NAMES)
def test_images_become_logits_through_normalisation(architecture: Architecture) -> None:
    model = initialise(architecture, CIFAR, seed=0).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor(CIFAR.mean).view(3, 1, 1), torch.tensor(CIFAR.std).view(3, 1, 1)
    with torch.no_grad():
        logits = model(images)
        outside = model.get_submodule("body")((images - mean) / std)
    assert logits.shape == (2, 10)
    assert torch.equal(logits, outside)
    assert not torch.equal(logits, model.get_submodule("body")(images))


@pytest.mark.parametrize("architecture", SMALL, ids=NAMES)
def test_the_declared_output_layer_yields_the_logits(architecture: Architecture) -> None:
    model = initialise(architecture, CIFAR, seed=0).eval()
    name = output_layer(model)
    layer = model.get_submodule(name.removesuffix(".weight"))
    assert name in prunable(model)
    with torch.no_grad():
        prunable(model)[name].zero_()
        logits = model(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(logits, layer.bias.expand(2, -1))


@pytest.mark.parametrize("architecture", SMALL, ids=NAMES)
def test_what_is_not_prunable_is_a_bias_a_norm_or_an_embedding(architecture: Architecture) -> None:
    model = on_meta(architecture, CIFAR)
    spared = {name: parameter for name, parameter in model.named_parameters() if name not in prunable(model)}
    assert all(kernel.ndim in (2, 4) for kernel in prunable(model).values())
    assert {name for name, parameter in spared.items() if parameter.ndim > 1} <= {"body.token", "body.positions"}


@pytest.mark.parametrize(
    ("architecture", "data", "all_parameters"),
    [
        (LeNet300100(), MNIST, 266_610),
        (ResNet20(), CIFAR, 269_722),
        (ResNet32(), CIFAR, 464_154),
        (WideResNet(), CIFAR, 36_479_194),
    ],
    ids=["lenet-300-100", "resnet-20", "resnet-32", "wide-resnet-28-10"],
)
def test_networks_have_the_published_number_of_parameters(
    architecture: Architecture, data: Signature, all_parameters: int
) -> None:
    assert parameters(on_meta(architecture, data)) == all_parameters


def test_lenet_has_the_published_number_of_kernel_weights() -> None:
    assert kernels(on_meta(LeNet300100(), MNIST)) == 266_200


@pytest.mark.parametrize(
    ("architecture", "in_convolutions", "in_all"),
    [(Conv2(), 38_592, 4_300_992), (Conv4(), 259_776, 2_425_024), (Conv6(), 1_144_512, 2_261_184)],
    ids=["conv-2", "conv-4", "conv-6"],
)
def test_conv_networks_have_the_published_layers(architecture: Architecture, in_convolutions: int, in_all: int) -> None:
    model = on_meta(architecture, CIFAR)
    assert sum(kernel.numel() for kernel in prunable(model).values() if kernel.ndim == 4) == in_convolutions
    assert kernels(model) == in_all


def test_imagenet_networks_agree_with_torchvision_where_the_stem_does() -> None:
    data = signature(3, 64, classes=100)
    with torch.device("meta"):
        references = {
            ResNet18(small_images=False): resnet18(num_classes=100),
            ResNet34(small_images=False): resnet34(num_classes=100),
            ResNet50(small_images=False): resnet50(num_classes=100),
            MobileNetV2(small_images=False): mobilenet_v2(num_classes=100),
        }
        vgg = vgg16_bn(num_classes=100)
    for architecture, reference in references.items():
        body = on_meta(architecture, data).get_submodule("body")
        assert {name: p.shape for name, p in body.named_parameters()} == {
            name: p.shape for name, p in reference.named_parameters()
        }
    assert parameters(on_meta(VGG16(), data)) == parameters(vgg.features) + 512 * 100 + 100


@pytest.mark.parametrize("architecture", [ResNet18(), MobileNetV2()], ids=["resnet-18", "mobilenet-v2"])
def test_the_stem_for_small_images_keeps_their_resolution(architecture: ResNet18 | MobileNetV2) -> None:
    sizes = {}
    for small in (True, False):
        model = initialise(architecture.model_copy(update={"small_images": small}), CIFAR, seed=0).eval()
        last = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)][-1]
        last.register_forward_hook(lambda _, __, output, small=small: sizes.update({small: output.shape[-1]}))
        with torch.no_grad():
            model(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert sizes == {True: 4, False: 1}


def test_the_shortcuts_of_thin_residual_networks_carry_the_stem_to_the_end() -> None:
    body = initialise(ResNet20(width=4), CIFAR, seed=0).get_submodule("body").eval()
    assert isinstance(body, nn.Sequential)
    for name, kernel in prunable(body).items():
        if "block" in name:
            kernel.detach().zero_()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stem, features = body[:3](images), body[:-3](images)
    assert features.shape == (2, 16, 8, 8)
    assert torch.equal(features[:, :4], stem[:, :, ::4, ::4])
    assert not features[:, 4:].any()


def test_the_vision_transformer_computes_what_torchvisions_does() -> None:
    ours = initialise(ViT(patch=8, dim=24, depth=2, heads=3), CIFAR, seed=0).eval()
    reference = VisionTransformer(32, 8, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=96, num_classes=10).eval()
    renamed = {
        "token": "class_token",
        "embed.": "conv_proj.",
        "positions": "encoder.pos_embedding",
        "blocks.": "encoder.layers.encoder_layer_",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attention.project_in.": "self_attention.in_proj_",
        "attention.project_out": "self_attention.out_proj",
        "hidden.": "mlp.0.",
        "project.": "mlp.3.",
        "output": "heads.head",
    }
    state = {}
    for own_name, tensor in ours.get_submodule("body").state_dict().items():
        name = own_name.replace("norm.", "encoder.ln.") if own_name.startswith("norm.") else own_name
        for own, theirs in renamed.items():
            name = name.replace(own, theirs)
        state[name] = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(state))) / 5
        tensor.copy_(state[name])
    reference.load_state_dict(state)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(ours.get_submodule("body")(images), reference(images), atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "data", "message"),
    [
        (Conv6(), signature(3, 7), "conv-6 needs images of at least 8x8 pixels, these are 3x7x7"),
        (VGG16(), MNIST, "vgg-16-bn needs images of at least 32x32 pixels, these are 1x28x28"),
        (ResNet20(), signature(1, 3), "resnet-20 needs images of at least 4x4 pixels"),
        (ResNet18(small_images=False), MNIST, "resnet-18 needs images of at least 32x32 pixels"),
        (MobileNetV2(), signature(1, 4), "mobilenet-v2 needs images of at least 8x8 pixels"),
        (WideResNet(), signature(1, 2), "wide-resnet needs images of at least 4x4 pixels"),
        (ViT(patch=8), MNIST, "divisible by its patch of 8, the images are 1x28x28"),
    ],
)
def test_images_that_do_not_fit_are_refused(architecture: Architecture, data: Signature, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        architecture.build(data)


@pytest.mark.parametrize(
    ("architecture", "smallest"),
    [(Conv6(), 8), (ResNet20(), 4), (ResNet18(), 8), (MobileNetV2(), 8), (WideResNet(depth=10, widen_factor=1), 4)],
)
def test_the_smallest_images_that_fit_do_run(architecture: Architecture, smallest: int) -> None:
    data = signature(1, smallest)
    logits = initialise(architecture, data, seed=0)(torch.rand(2, 1, smallest, smallest))
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "fields"), [(WideResNet, {"depth": 20}), (ViT, {"dim": 100, "heads": 3}), (ViT, {"patch": 0})]
)
def test_shapes_that_no_network_has_are_refused(kind: type[Architecture], fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"6n \+ 4|multiple of heads|greater than or equal"):
        kind(**fields)


def test_initial_weights_depend_on_the_seed_alone_and_leave_the_global_generator() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = initialise(LeNet300100(), MNIST, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = initialise(LeNet300100(), MNIST, seed=7), initialise(LeNet300100(), MNIST, seed=8)
    for (name, one), same, different in zip(
        first.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(one, same), name
        assert not torch.equal(one, different), name


def test_xavier_and_kaiming_have_their_deviation_and_zero_biases() -> None:
    for initialiser, deviation in (("xavier-normal", (2 / (784 + 300)) ** 0.5), ("kaiming-normal", (2 / 784) ** 0.5)):
        body = initialise(LeNet300100(), MNIST, 0, initialiser).get_submodule("body")
        hidden = body.get_submodule("hidden1")
        assert isinstance(hidden, nn.Linear)
        assert float(hidden.weight.detach().std()) == pytest.approx(deviation, rel=0.01)
        assert not hidden.bias.any()


def test_another_initialiser_leaves_norms_and_embeddings_to_the_architecture() -> None:
    default, redrawn = (initialise(ViT(dim=24, depth=1), CIFAR, 0, how) for how in ("default", "xavier-normal"))
    kernel_names = set(prunable(default))
    for (name, one), other in zip(default.named_parameters(), redrawn.parameters(), strict=True):
        if name in kernel_names:
            assert not torch.equal(one, other), name
        elif "bias" not in name:
            assert torch.equal(one, other), name


def test_prunable_kernels_come_in_the_order_of_the_layers_and_are_live() -> None:
    model = initialise(LeNet300100(), MNIST, 0)
    names = list(prunable(model))
    assert names == ["body.hidden1.weight", "body.hidden2.weight", "body.output.weight"]
    assert output_layer(model) == names[-1] == output_layer(copy.deepcopy(model))
    assert all(prunable(model)[name] is model.get_parameter(name) for name in names)
    shapes = [prunable(model)[name].shape for name in names]
    assert all(wide[0] == narrow[1] for wide, narrow in pairwise(shapes))


def test_a_model_without_a_declared_output_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="Sequential does not declare its output layer"):
        output_layer(nn.Sequential(nn.Linear(2, 2)))
