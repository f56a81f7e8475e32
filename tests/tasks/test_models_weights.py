"""Weights files: exact, deterministic, self-describing, refused when they do not fit."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load, save

from tasks.data import Signature
from tasks.models.initialise import initialise
from tasks.models.lenet import LeNet300100
from tasks.models.resnet_cifar import ResNet20
from tasks.models.weights import load_weights, restore, weights_to_bytes

DATA = Signature(3, 8, 8, 4, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2))
NET = ResNet20(width=4)


def test_restored_weights_and_buffers_are_bit_identical() -> None:
    trained = initialise(NET, DATA, seed=1)
    trained(torch.rand(4, 3, 8, 8))  # moves the running statistics
    content = weights_to_bytes(trained)
    model = initialise(NET, Signature(3, 8, 8, 4, mean=(0, 0, 0), std=(1, 1, 1)), seed=2)
    restore(model, content)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert weights_to_bytes(model) == content


def test_a_weights_file_says_what_is_prunable_and_stays_plain_safetensors() -> None:
    model = initialise(LeNet300100(), DATA, seed=1)
    content = weights_to_bytes(model)
    weights = load_weights(content)
    assert weights.prunable == ("body.hidden1.weight", "body.hidden2.weight", "body.output.weight")
    assert weights.output_layer == "body.output.weight"
    assert all(torch.equal(kernel, model.get_parameter(name)) for name, kernel in weights.kernels().items())
    assert set(load(content)) == set(model.state_dict())


def test_equal_weights_are_equal_bytes_in_every_memory_layout() -> None:
    model = initialise(NET, DATA, seed=1)
    content = weights_to_bytes(model)
    assert weights_to_bytes(model.to(memory_format=torch.channels_last)) == content


@pytest.mark.slow
def test_equal_weights_are_equal_bytes_in_every_process() -> None:
    script = (
        "import hashlib; from tests.tasks.test_models_weights import *; "
        "print(hashlib.sha256(weights_to_bytes(initialise(NET, DATA, 1))).hexdigest())"
    )
    digests = {subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (initialise(LeNet300100(), DATA, 0), r"the weights file has no 'body\.conv\.weight'"),
        (
            initialise(ResNet20(width=8), DATA, 0),
            r"'body\.conv\.weight' is \(8, 3, 3, 3\) in the file and \(4, 3, 3, 3\)",
        ),
    ],
)
def test_weights_of_another_network_are_refused_and_change_nothing(other: torch.nn.Module, message: str) -> None:
    model = initialise(NET, DATA, seed=1)
    before = weights_to_bytes(model)
    with pytest.raises(ValueError, match=message):
        restore(model, weights_to_bytes(other))
    assert weights_to_bytes(model) == before


def test_a_damaged_or_foreign_file_is_refused() -> None:
    content = weights_to_bytes(initialise(NET, DATA, seed=1))
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_weights(content[:-1])
    with pytest.raises(ValueError, match="does not name its prunable layers"):
        load_weights(save({"weight": torch.ones(2)}))
