"""Convolutions with a cheap input gradient compute what they replace."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tasks.measuring.input_gradient import with_fast_input_gradients


@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 4, "stride": 2, "padding": 1},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 5), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2), "bias": False},
        {"kernel_size": 7, "stride": 2, "padding": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [1, 3])
def test_outputs_are_equal_and_gradients_are_equal_to_rounding(channels: int, geometry: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(channels, 64, **geometry), nn.Tanh()).double().requires_grad_(False)
    images = torch.rand(5, channels, 17, 18, dtype=torch.float64)
    results = []
    for each in (model, with_fast_input_gradients(copy.deepcopy(model))):
        leaf = images.clone().requires_grad_()
        output = each(leaf)
        (gradient,) = torch.autograd.grad(output.sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), leaf)
        results.append((output.detach(), gradient.detach(), second))
    assert type(each[0]) is not nn.Conv2d
    assert torch.equal(results[0][0], results[1][0])
    for expected, found in zip(results[0][1:], results[1][1:], strict=True):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_only_what_gains_is_replaced_and_names_stay() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 48, 3),
        nn.Sequential(nn.Conv2d(48, 48, 3), nn.Conv2d(48, 768, 1, groups=48)),
        nn.Conv2d(3, 48, 3, padding="same"),
        nn.Conv2d(3, 16, 3),
    ).requires_grad_(False)
    names = list(model.state_dict())
    kinds = [type(module) for module in with_fast_input_gradients(model).modules()]
    assert kinds.count(nn.Conv2d) == 4
    assert list(model.state_dict()) == names


class Noisy(nn.Conv2d):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) + 1


def test_a_convolution_that_computes_something_else_is_left_alone() -> None:
    hooked = nn.Conv2d(1, 64, 3)
    hooked.register_forward_hook(lambda module, given, output: output.round())
    normalised = nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 64, 3))
    images = torch.rand(2, 1, 9, 9)
    for layer in (Noisy(1, 64, 3), hooked, normalised):
        model = nn.Sequential(layer).requires_grad_(False)
        expected = model(images)
        assert torch.equal(with_fast_input_gradients(model)(images), expected)
        assert model[0] is layer


def test_a_network_that_trains_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 64, 3))
    assert type(with_fast_input_gradients(model)[0]) is nn.Conv2d
