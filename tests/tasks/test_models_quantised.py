"""Networks with rounded features: the base's weights, values on the grid, and the gradient that was asked for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tasks.attacks.bpda import BPDA
from tasks.attacks.pgd import PGD
from tasks.data import Signature
from tasks.measuring.evaluate import Evaluate
from tasks.models import Architecture
from tasks.models.initialise import initialise
from tasks.models.lenet import LeNet300100
from tasks.models.network import Network
from tasks.models.prunable import output_layer, prunable
from tasks.models.quantised import Quantised
from tasks.models.resnet_cifar import ResNet20
from tasks.models.small_cnn import SmallCNN
from tasks.models.weights import load_weights, restore, weights_to_bytes
from tasks.objectives import pgd
from tasks.seeds import generator
from tasks.task import Alone
from tests.tasks.attack_toys import SmallNet, TwoFeatures, standard_net, step_of
from tests.tasks.training_toys import Tiny, half_mask, toy, trained

pytestmark = pytest.mark.usefixtures("one_thread")

GREY = Signature(1, 8, 8, 10, (0.5,), (0.25,))
COLOUR = Signature(3, 8, 8, 10, (0.5,) * 3, (0.25,) * 3)


def small(step: float = 0.25, **fields: Any) -> Quantised:
    return Quantised(**{"base": SmallCNN(), "after": ("conv1",), "step": step, **fields})


def outputs_of(model: nn.Module, name: str, images: torch.Tensor) -> torch.Tensor:
    """What the rest of the network gets of a layer."""
    found: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda *call: found.append(call[2]))
    model(images)
    handle.remove()
    return found[0]


def pictures(data: Signature = GREY) -> torch.Tensor:
    return torch.rand(16, data.channels, data.height, data.width, generator=generator("pictures"))


@pytest.mark.parametrize("gradient", ["straight-through", "none"])
@pytest.mark.parametrize("step", [0.1, 0.25, 1, 3])
def test_features_are_the_bases_rounded_to_the_nearest_multiple(step: float, gradient: str) -> None:
    base, rounded = initialise(SmallCNN(), GREY, 0), initialise(small(step, gradient=gradient), GREY, 0)
    plain = outputs_of(base, "body.conv1", pictures()).detach()
    coarse = outputs_of(rounded, "body.conv1", pictures()).detach()
    assert torch.equal(coarse, (plain / step).round() * step)
    assert float((coarse - plain).abs().max()) <= step / 2 + 1e-6
    assert not torch.equal(coarse, plain)


def test_a_vanishing_step_changes_nothing_and_a_huge_one_leaves_nothing() -> None:
    base = initialise(SmallCNN(), GREY, 0)
    fine, none = initialise(small(1e-7), GREY, 0), initialise(small(1e3), GREY, 0)
    assert torch.allclose(fine(pictures()), base(pictures()), atol=1e-5)
    assert not outputs_of(none, "body.conv1", pictures()).any()


@pytest.mark.parametrize("base", [SmallCNN(), ResNet20(width=4)], ids=["small-cnn", "resnet-20"])
def test_weights_go_either_way_and_start_from_the_same_bits(base: Architecture) -> None:
    architecture = Quantised(base=base, after=("conv1",), step=0.5)
    plain, rounded = initialise(base, COLOUR, 3), initialise(architecture, COLOUR, 3)
    assert weights_to_bytes(plain) == weights_to_bytes(rounded)
    assert output_layer(plain) == output_layer(rounded)
    assert list(prunable(plain)) == list(prunable(rounded))
    other = initialise(base, COLOUR, 4)
    restore(rounded, weights_to_bytes(other))
    restore(plain, weights_to_bytes(rounded))
    assert torch.equal(plain.eval()(pictures(COLOUR)), other.eval()(pictures(COLOUR)))


@pytest.mark.parametrize(
    ("after", "paths"),
    [
        (("conv1",), 9),
        (("body.conv",), 1),
        (("conv", "body.stage1_block1.conv1", "stage1_block1.conv1"), 2),
        (("normalise",), 1),
        (("body",), 1),
    ],
    ids=["every-block", "first", "each-once", "pixels", "sequence"],
)
def test_modules_go_by_their_names_or_the_last_parts_of_them(after: tuple[str, ...], paths: int) -> None:
    architecture = Quantised(base=ResNet20(width=4), after=after, step=0.5)
    model = initialise(architecture, COLOUR, 0).eval()
    roundings = [path for path, _ in model.named_modules() if path.endswith(".rounding")]
    assert len(roundings) == paths
    plain = initialise(ResNet20(width=4), COLOUR, 0).eval()
    calls: list[str] = []
    for path in roundings:
        model.get_submodule(path).register_forward_hook(lambda *_, path=path: calls.append(path))
    model(pictures(COLOUR))
    assert sorted(calls) == sorted(roundings)
    for path in roundings:
        coarse = outputs_of(model, path.removesuffix(".rounding"), pictures(COLOUR))
        assert not (coarse % 0.5).any()
    assert not torch.equal(model(pictures(COLOUR)), plain(pictures(COLOUR)))


def test_gradients_pass_or_vanish_as_asked() -> None:
    found = {}
    for gradient in ("straight-through", "none"):
        model = initialise(small(0.5, gradient=gradient), GREY, 0)
        model(images := pictures().requires_grad_()).square().sum().backward()
        found[gradient] = images.grad, model.body.conv1.weight.grad, model.body.conv2.weight.grad
    straight, none = found["straight-through"], found["none"]
    assert all(gradient.any() for gradient in straight)
    assert not none[0].any()
    assert not none[1].any()
    assert torch.equal(none[2], straight[2])

    # The identity's: what a network computes whose features are off by a constant.
    base, model = initialise(SmallCNN(), GREY, 0), initialise(small(0.5), GREY, 0)
    images = pictures()
    constant = outputs_of(model, "body.conv1", images).detach() - outputs_of(base, "body.conv1", images).detach()
    base.body.conv1.register_forward_hook(lambda _, __, output: output + constant)
    base(images := pictures().requires_grad_()).square().sum().backward()
    assert torch.allclose(images.grad, straight[0], rtol=1e-4, atol=1e-6)


def test_a_copy_rounds_by_itself() -> None:
    model = initialise(small(0.5), GREY, 0)
    twin = copy.deepcopy(model)
    twin.body.conv1.rounding.step = 1.0
    assert not (outputs_of(twin, "body.conv1", pictures()) % 1).any()
    assert (outputs_of(model, "body.conv1", pictures()) % 1).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("gradient", ["straight-through", "none"])
def test_features_keep_their_type_and_half_precision_does_not_overflow(dtype: torch.dtype, gradient: str) -> None:
    rounding = initialise(small(1e-3, gradient=gradient), GREY, 0).body.conv1.rounding
    features = torch.tensor([-200.0, 0.0, 0.25, 200.0], dtype=dtype)  # 200 / 0.001 is more than float16 holds
    assert rounding(features).dtype == dtype
    assert torch.allclose(rounding(features), features)


def test_the_rounding_is_a_module_that_bpda_goes_through() -> None:
    with torch.device("meta"):
        network = small(gradient="none").build(GREY)
    BPDA(attack=PGD(), through=("rounding",)).check_model(network)
    BPDA(attack=PGD(), through=("body.conv1.rounding",)).check_model(network)


def test_unknown_modules_are_one_line_with_what_is_there() -> None:
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"after: the network has no module 'conv3'; did you mean 'conv\d'\? it has "),
    ):
        small(after=("conv3",)).build(GREY)


def test_the_same_outputs_are_not_rounded_twice() -> None:
    nested = Quantised(base=small(0.5), after=("conv2",), step=0.25)
    model = initialise(nested, GREY, 0)
    assert [path for path, _ in model.named_modules() if path.endswith("rounding")] == [
        "body.conv1.rounding",
        "body.conv2.rounding",
    ]
    with pytest.raises(ValueError, match=r"after: the outputs of 'body\.conv1' are rounded already"):
        Quantised(base=small(0.5), after=("conv1",), step=0.25).build(GREY)


@pytest.mark.parametrize("fields", [{"step": 0}, {"after": ()}, {"gradient": "some"}], ids=str)
def test_values_out_of_bounds_do_not_validate(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        small(**fields)


def test_a_training_of_the_base_is_evaluated_with_its_features_rounded() -> None:
    def accuracy(architecture: Architecture) -> tuple[float, float]:
        task = Evaluate(data=TwoFeatures(), architecture=architecture, attacks=(PGD(),), epsilons=(0.1,))
        metrics = task.run(Alone(), trained=step_of(standard_net())).metrics
        return metrics["clean"]["accuracy"], metrics["robust"][0]["accuracy"]

    rounded = Quantised(base=SmallNet(), after=("body.0",), step=0.5, gradient="none")
    assert accuracy(SmallNet())[1] < 0.1
    assert accuracy(rounded)[1] > 0.8  # there is nothing to follow
    assert accuracy(rounded.model_copy(update={"gradient": "straight-through"}))[1] < 0.1
    assert accuracy(Quantised(base=SmallNet(), after=("body.0",), step=1e6))[0] == pytest.approx(0.5, abs=0.1)


def test_training_goes_through_the_rounding_under_a_mask_and_ends_in_weights_of_the_base() -> None:
    rounded = Quantised(base=Tiny(norm=True), after=("body.0",), step=0.5)
    first = trained(toy(architecture=rounded))
    again = trained(toy(architecture=rounded))
    assert first.files == again.files
    before = load_weights(trained(toy(architecture=rounded, stop_at=0)).read("weights.safetensors")).tensors
    after = load_weights(first.read("weights.safetensors")).tensors
    assert not torch.equal(before["body.0.weight"], after["body.0.weight"])
    objective = pgd.PGD(epsilon=0.1, steps=2)
    sparse = trained(toy(architecture=rounded, objective=objective), mask=half_mask(first))
    onward = trained(toy(architecture=Tiny(norm=True), schedule_from="zero"), start=sparse)
    assert onward.metrics["density"] == sparse.metrics["density"] < 1
    blind = toy(architecture=rounded.model_copy(update={"gradient": "none"}))
    stuck = load_weights(trained(blind).read("weights.safetensors")).tensors
    assert torch.equal(before["body.0.weight"], stuck["body.0.weight"])  # nothing reaches what lies before
    assert not torch.equal(before["body.4.weight"], stuck["body.4.weight"])


def test_it_is_a_network_and_its_name_holds_its_fields() -> None:
    architecture = Quantised(base=LeNet300100(), after=("hidden1",), step=0.5)
    assert isinstance(architecture.build(GREY), Network)
    assert architecture.identity() == {
        "kind": "quantised",
        "base": {"kind": "lenet-300-100"},
        "after": ["hidden1"],
        "step": 0.5,
    }
