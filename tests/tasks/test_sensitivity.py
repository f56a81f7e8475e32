"""Amplification by layer: exact where it can be computed by hand, and defined wherever a ratio is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tasks.analysis.sensitivity import FilterSensitivity
from tasks.attacks import Attack
from tasks.attacks.draws import Draws
from tasks.attacks.pgd import PGD
from tasks.attacks.transfer import Transfer
from tasks.data import Dataset, Examples, Signature, Split
from tasks.models import Architecture
from tasks.models.network import Network
from tasks.models.prunable import prunable
from tasks.models.quantised import Quantised
from tasks.models.small_cnn import SmallCNN
from tasks.models.vit import ViT
from tasks.models.weights import weights_to_bytes
from tasks.seeds import generator
from tasks.task import Alone
from tests.tasks.attack_toys import Finished, Interrupted, SmallNet, Stopping, TwoFeatures, step_of

pytestmark = pytest.mark.usefixtures("one_thread")


class Noise(Dataset):
    """Images of noise around grey, the first `black` of them black."""

    kind: Literal["test-noise"] = "test-noise"
    channels: int = 1
    size: int = 4
    count: int = 20
    black: int = 0
    mean: float = 0.5

    def fingerprint(self) -> str:
        return "noise"

    def signature(self) -> Signature:
        means, deviations = (self.mean, 0.4, 0.3), (0.25, 0.5, 0.125)
        return Signature(self.channels, self.size, self.size, 3, means[: self.channels], deviations[: self.channels])

    def load(self, split: Split) -> Examples:
        shape = (self.count, self.channels, self.size, self.size)
        images = torch.randint(64, 192, shape, generator=generator("noise", split)).to(torch.uint8)
        images[: self.black] = 0
        return Examples(images, torch.arange(self.count) % 3)


Build = Callable[[Signature], Network]


class HandMade(Architecture):
    """Whatever a test builds."""

    kind: Literal["test-hand-made"] = "test-hand-made"
    make: Any

    def build(self, data: Signature) -> nn.Module:
        return self.make(data)


class Along(Attack):
    """Moves images by epsilon along a fixed direction, only every other one if `half`."""

    kind: Literal["test-along"] = "test-along"
    direction: tuple[float, ...]
    half: bool = False

    def search(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        change = epsilon.view(-1, 1, 1, 1) * torch.tensor(self.direction).view_as(images[:1])
        moves = torch.arange(len(images)).view(-1, 1, 1, 1) % 2 == 0 if self.half else torch.tensor(True)
        return images + change * moves


def body(*layers: nn.Module) -> Build:
    return lambda data: Network(data, nn.Sequential(*layers), layers[-1])


def network(make: Build, data: Dataset) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(data.signature())


def measure(model: nn.Module, data: Dataset, attack: Attack, context: Any = None, **fields: Any) -> dict[str, Any]:
    architecture = fields.pop("architecture", None) or HandMade(make=lambda _: copy.deepcopy(model))
    task = FilterSensitivity(data=data, architecture=architecture, attack=attack, **{"epsilon": 0.05, **fields})
    return task.run(context or Alone(), trained=Finished(**{"weights.safetensors": weights_to_bytes(model)})).metrics


def orthogonal(size: int, name: str) -> torch.Tensor:
    basis: torch.Tensor = torch.linalg.qr(torch.randn(size, size, generator=generator(name), dtype=torch.float64))[0]
    return basis


@pytest.mark.parametrize("which", [0, 7, 15])
def test_the_gain_of_a_linear_layer_is_the_singular_value_of_the_direction(which: int) -> None:
    left, right, second = orthogonal(16, "left"), orthogonal(16, "right"), orthogonal(16, "second")
    values = torch.logspace(1, -1, 16, dtype=torch.float64)
    layers = nn.Linear(16, 16, bias=False), nn.Linear(16, 16), nn.Linear(16, 3)
    layers[0].weight.data = (left * values @ right.T).float()
    layers[1].weight.data = (second * values.flip(0) @ left.T).float()
    data = Noise()
    model = network(body(nn.Flatten(), *layers), data)
    found = measure(model, data, Along(direction=tuple(right[:, which].tolist())))
    first, middle, _ = found["layers"]
    assert first["gain"] == pytest.approx(float(values[which]), rel=1e-3)
    assert middle["gain"] == pytest.approx(float(values[15 - which]), rel=1e-3)
    images = data.load("test").images / 255
    outputs = layers[0]((images - 0.5).flatten(1) / 0.25).detach()
    expected = (values[which] * 0.05 / 0.25 / outputs.norm(dim=1)).mean()
    assert first["change"] == pytest.approx(float(expected), rel=1e-3)


def grey_to_three(data: Signature) -> Network:
    output = nn.Linear(8, 3)
    layers = nn.Sequential(nn.Conv2d(3, 8, 4), nn.Flatten(), output)
    return Network(replace(data, mean=(0.1, 0.2, 0.3), std=(0.25, 0.5, 0.125)), layers, output)


@pytest.mark.parametrize(
    ("channels", "make"),
    [
        (1, body(nn.Conv2d(1, 20, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(320, 3))),
        (3, body(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(20, 3))),
        (3, body(nn.Conv2d(3, 6, 3, padding=1, groups=3), nn.Flatten(), nn.Linear(96, 3))),
        (3, body(nn.Flatten(), nn.Linear(48, 7), nn.ReLU(), nn.Linear(7, 3))),
        (1, grey_to_three),
    ],
    ids=["grey", "colour", "by-channel", "linear", "grey-to-three"],
)
def test_a_filters_sum_is_its_largest_gain_from_pixels(channels: int, make: Build) -> None:
    data = Noise(channels=channels)
    model = network(make, data).eval()
    filters = measure(model, data, PGD(steps=2))["filters"]
    name = next(iter(prunable(model)))
    assert filters["layer"] == name
    features: list[torch.Tensor] = []
    model.get_submodule(name.removesuffix(".weight")).register_forward_hook(lambda *call: features.append(call[2]))

    def first_layer(image: torch.Tensor) -> torch.Tensor:
        model(image)
        found = features[-1]
        return found[0, :, 1, 1] if found.dim() == 4 and found.shape[2] > 1 else found.flatten()  # not cut by padding

    jacobian = torch.autograd.functional.jacobian(first_layer, torch.rand(1, channels, 4, 4))
    expected = jacobian.flatten(1).abs().sum(dim=1)
    assert filters["l1"] == pytest.approx(expected.tolist(), rel=1e-5)
    assert filters["max"] == max(filters["l1"])
    assert filters["mean"] == pytest.approx(sum(filters["l1"]) / len(filters["l1"]))


@pytest.mark.parametrize(
    "first",
    [(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 3)), (nn.Linear(4, 4), nn.Flatten(), nn.Linear(16, 3))],
    ids=["pooled", "by-row"],
)
def test_a_layer_that_does_not_see_the_whole_normalised_image_has_no_such_sums(first: tuple[nn.Module, ...]) -> None:
    data = Noise()
    assert measure(network(body(*first), data), data, PGD(steps=2))["filters"] is None


def test_rounded_pixels_have_no_such_sums() -> None:
    data = TwoFeatures()
    architecture = Quantised(base=SmallNet(), after=("normalise",), step=1)
    model = network(lambda signature: SmallNet().build(signature), data)
    assert measure(model, data, PGD(steps=2), examples=20)["filters"] is not None
    assert measure(model, data, PGD(steps=2), examples=20, architecture=architecture)["filters"] is None


class Recurrent(nn.Module):
    """A layer that is applied twice, one that is never, and one to something that is no image; defined backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(16, 3)
        self.idle = nn.Linear(16, 16)
        self.table = nn.Linear(2, 1)
        self.twice = nn.Linear(16, 16)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = images.flatten(1) + self.table(torch.ones(5, 2)).sum()
        logits: torch.Tensor = self.output(self.twice(self.twice(features).relu()))
        return logits


def test_layers_used_twice_or_never_are_told_apart_and_come_in_the_order_of_use() -> None:
    data = Noise()

    def make(signature: Signature) -> Network:
        inner = Recurrent()
        return Network(signature, inner, inner.output)

    model = network(make, data).eval()
    direction = torch.randn(16, generator=generator("direction"))
    layers = measure(model, data, Along(direction=tuple(direction.tolist())))["layers"]
    assert [(layer["layer"], layer["uses"]) for layer in layers] == [
        ("body.twice.weight", 2),
        ("body.output.weight", 1),
        ("body.idle.weight", 0),
        ("body.table.weight", 0),
    ]
    for unused in layers[2:]:
        assert (unused["gain"], unused["gain_examples"], unused["change"], unused["change_examples"]) == (
            *(None, 0),
            *(None, 0),
        )
    images = data.load("test").images / 255
    ends: list[list[torch.Tensor]] = []
    model.body.twice.register_forward_hook(lambda _, given, output: ends[-1].extend((given[0], output)))
    for batch in (images, images + 0.05 * direction.view(1, 1, 4, 4)):
        ends.append([])
        model(batch)
    changes = [moved - clean for clean, moved in zip(*ends, strict=True)]
    expected = (torch.cat(changes[1::2], 1).norm(dim=1) / torch.cat(changes[0::2], 1).norm(dim=1)).detach()
    assert layers[0]["gain"] == pytest.approx(float(expected.mean()), rel=1e-4)


def test_images_without_change_and_outputs_of_zero_are_left_out_of_the_means() -> None:
    data = Noise(black=6, mean=0.0)
    conv = nn.Conv2d(1, 2, 3, bias=False)
    model = network(body(conv, nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)), data)
    direction = tuple(torch.randn(16, generator=generator("direction")).tolist())
    half, whole = (measure(model, data, Along(direction=direction, half=half))["layers"][0] for half in (True, False))
    assert (half["gain_examples"], whole["gain_examples"]) == (10, 20)
    assert (half["change_examples"], whole["change_examples"]) == (14, 14)  # black images have outputs of zero
    assert half["gain"] == pytest.approx(whole["gain"], rel=1e-4)  # the layer is linear: each image has the same gain
    still = measure(model, data, Along(direction=(0.0,) * 16))["layers"]
    assert [(layer["gain"], layer["gain_examples"], layer["change"]) for layer in still] == [(None, 0, 0.0)] * 2


@pytest.mark.parametrize(
    "architecture", [ViT(dim=8, depth=1, heads=2, patch=2), SmallCNN()], ids=["transformer", "convolutions"]
)
def test_whole_images_count_whatever_shape_the_features_have(architecture: Architecture) -> None:
    data = Noise(size=8, count=139)
    model = network(lambda signature: architecture.build(signature), data).eval()
    direction = torch.randn(64, generator=generator("direction"))
    found = measure(model, data, Along(direction=tuple(direction.tolist())), architecture=architecture)
    assert [layer["layer"] for layer in found["layers"]] == list(prunable(model))
    assert found["examples"] == 139
    assert found["cost"] == 139 * 3
    images = data.load("test").images / 255
    for layer in found["layers"]:
        ends: list[torch.Tensor] = []
        hooked = model.get_submodule(layer["layer"].removesuffix(".weight"))
        handle = hooked.register_forward_hook(lambda _, given, output, ends=ends: ends.extend((given[0], output)))
        with torch.no_grad():
            model(images)
            model(images + 0.05 * direction.view(1, 1, 8, 8))
        handle.remove()
        given, output, moved_given, moved_output = (end.flatten(1) for end in ends)
        gain = (moved_output - output).norm(dim=1) / (moved_given - given).norm(dim=1)
        change = (moved_output - output).norm(dim=1) / output.norm(dim=1)
        assert layer["gain"] == pytest.approx(float(gain.mean()), rel=1e-4)
        assert layer["change"] == pytest.approx(float(change.mean()), rel=1e-4)


def small(context: Any = None, **fields: Any) -> dict[str, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SmallNet().build(TwoFeatures().signature())
    task = FilterSensitivity(data=TwoFeatures(), architecture=SmallNet(), **{"epsilon": 0.1, **fields})
    return task.run(context or Alone(), trained=step_of(model)).metrics


def test_interrupted_at_any_block_it_ends_the_same() -> None:
    whole = small()
    assert whole["examples"] == 300
    for stop_after in (1, 2, 3):
        first = Stopping(stop_after=stop_after)
        with pytest.raises(Interrupted):
            small(first)
        torch.manual_seed(stop_after)
        assert small(Stopping(first.states[-1])) == whole


def test_equal_tasks_give_equal_figures_whatever_the_global_generator_does() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = small(examples=50)
        before = torch.get_rng_state()
        assert small(examples=50) == first
        assert torch.equal(torch.get_rng_state(), before)
    assert small(examples=50, seed=1) != first


def test_the_attacks_version_is_part_of_the_identity() -> None:
    task = FilterSensitivity(data=TwoFeatures(), architecture=SmallNet(), epsilon=0.1)
    assert task.identity()["attack"] == {"kind": "pgd", "version": PGD.version}


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"attack": Transfer(source="twin")}, "`transfer` needs another network"),
        ({"epsilon": 1.5}, r"epsilon is 1.5, but images lie in \[0, 1\]"),
        ({"epsilon": 0}, "greater than 0"),
    ],
    ids=["transfer", "radius", "none"],
)
def test_what_cannot_be_measured_is_one_clear_line(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError, match=line):
        FilterSensitivity(data=TwoFeatures(), architecture=SmallNet(), **{"epsilon": 0.1, **fields})


def test_a_network_that_was_not_trained_to_finite_numbers_is_one_clear_line() -> None:
    data = Noise()
    model = network(body(nn.Flatten(), nn.Linear(16, 3)), data)
    model.body[1].weight.data.fill_(torch.inf)
    with pytest.raises(ValueError, match="logits are not finite on 20 of 20 images"):
        measure(model, data, PGD(steps=2))
