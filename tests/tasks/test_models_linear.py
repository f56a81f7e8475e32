"""The faster linear layer is a linear layer."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from tasks.models import linear
from tasks.models.linear import Linear

SIZES = [(7, 784, 300), (60, 300, 100), (1, 64, 64)]


@pytest.fixture
def slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_goes_through_onednn", lambda features, weight: False)


def layers(rows: int, inputs: int, outputs: int) -> tuple[nn.Linear, nn.Linear, torch.Tensor]:
    """The same layer as ours and as PyTorch's, and features for both."""
    torch.manual_seed(0)
    ours, theirs = Linear(inputs, outputs), nn.Linear(inputs, outputs)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, torch.randn(rows, inputs)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)
def test_outputs_and_gradients_are_those_of_pytorch(rows: int, inputs: int, outputs: int) -> None:
    ours, theirs, features = layers(rows, inputs, outputs)
    assert linear._goes_through_onednn(features, ours.weight)
    gradients = []
    for layer in (ours, theirs):
        at = features.clone().requires_grad_()
        (layer(at) ** 2).mean().backward()
        gradients.append([at.grad, layer.weight.grad, layer.bias.grad])
    torch.testing.assert_close(ours(features), theirs(features))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_gradients_of_gradients_are_those_of_pytorch() -> None:
    ours, theirs, features = layers(5, 80, 60)
    penalties = []
    for layer in (ours, theirs):
        at = features.clone().requires_grad_()
        (slope,) = torch.autograd.grad((layer(at).tanh() ** 2).sum(), at, create_graph=True)
        (slope**2).sum().backward()
        penalties.append([at.grad, layer.weight.grad])
    assert penalties[0][1].abs().max() > 0
    torch.testing.assert_close(penalties[0], penalties[1], rtol=1e-4, atol=1e-5)


def test_nothing_is_computed_for_what_needs_no_gradient() -> None:
    ours, _, features = layers(5, 80, 60)
    ours.weight.requires_grad_(False)
    at = features.requires_grad_()
    ours(at).sum().backward()
    assert at.grad is not None
    assert ours.weight.grad is None


def test_vmap_half_precision_and_compilation_take_the_usual_path() -> None:
    ours, theirs, features = layers(6, 80, 60)
    mapped = torch.func.vmap(ours)(features.view(2, 3, 80))
    torch.testing.assert_close(mapped.reshape(6, 60), theirs(features))
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(features).dtype == torch.bfloat16
    assert pickle.loads(pickle.dumps(ours)).state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.usefixtures("slower")
def test_without_onednn_it_is_pytorchs_own() -> None:
    ours, theirs, features = layers(6, 80, 60)
    assert torch.equal(ours(features), theirs(features))
