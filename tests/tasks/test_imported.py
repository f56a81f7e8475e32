"""Checkpoints trained elsewhere: what is read, what is refused and in which words, and torchvision's classifiers."""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save as save_safetensors
from torch import nn
from torchvision import models

from tasks.data import Signature
from tasks.measuring.evaluate import Evaluate
from tasks.models import Architecture
from tasks.models.prunable import output_layer
from tasks.models.torchvision import Torchvision
from tasks.models.weights import load_weights, restore
from tasks.task import Alone
from tasks.training.imported import ImportWeights
from tasks.training.train import Train
from tests.tasks.attack_toys import Finished
from tests.tasks.training_toys import Blobs, Tiny

COLOUR = Signature(3, 32, 32, 10, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
GREY = Signature(1, 28, 28, 10, (0.13,), (0.31,))


class Colour(Blobs):
    """Shape and classes of CIFAR-10, and no images."""

    kind: Literal["toy-colour"] = "toy-colour"  # type: ignore[assignment]

    def signature(self) -> Signature:
        return COLOUR


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEDGEROW_CACHE", str(tmp_path / "cache"))


def network(seed: int = 3, **fields: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Tiny(**fields).build(Blobs().signature())
        for name, tensor in net.state_dict().items():
            if name.startswith("body.") and tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor))
    return net


def body_of(net: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict as the script that trained the body alone would save it."""
    body = net.body
    assert isinstance(body, nn.Module)
    return body.state_dict()


def saved(path: Path, content: Any) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    return path


def importing(path: Path, **fields: Any) -> ImportWeights:
    return ImportWeights(data=Blobs(), architecture=Tiny(**fields), path=path)


def imported(path: Path, **fields: Any) -> Mapping[str, torch.Tensor]:
    task = importing(path, **fields)
    task.check()
    return load_weights(task.run(Alone()).files["weights.safetensors"]).tensors


def assert_equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


NET = network()
LAYERS = body_of(NET)


@pytest.mark.parametrize(
    "content",
    [
        LAYERS,
        NET.state_dict(),
        {"epoch": 3, "state_dict": LAYERS},
        {"model": LAYERS, "optimizer": {"lr": 0.1}},
        {"model_state_dict": LAYERS},
        {"net": {f"module.{name}": tensor for name, tensor in LAYERS.items()}, "acc": 93.1},
        {f"module._orig_mod.{name}": tensor for name, tensor in LAYERS.items()},
        {f"module.body.{name}": tensor for name, tensor in LAYERS.items()},
        {name: tensor.double() for name, tensor in LAYERS.items()},
        save_safetensors(LAYERS),
        save_safetensors({f"module.{name}": tensor for name, tensor in LAYERS.items()}),
    ],
    ids=["plain", "whole", "state_dict", "model", "model_state_dict", "net", "wrapped", "body", "double", "st", "st2"],
)
def test_a_state_dict_is_found_wherever_scripts_put_it(tmp_path: Path, content: Any) -> None:
    assert_equal(imported(saved(tmp_path / "mine.pt", content)), NET.state_dict())


def test_normalisation_comes_from_the_data_unless_the_file_has_its_own(tmp_path: Path) -> None:
    assert imported(saved(tmp_path / "a.pt", LAYERS))["normalise.mean"].flatten().tolist() == [0.5]
    own = {**NET.state_dict(), "normalise.mean": torch.full((1, 1, 1), 0.25)}
    assert imported(saved(tmp_path / "b.pt", own))["normalise.mean"].flatten().tolist() == [0.25]


def test_counters_that_old_checkpoints_lack_are_not_missed(tmp_path: Path) -> None:
    net = network(norm=True)
    old = {name: tensor for name, tensor in body_of(net).items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(body_of(net))
    assert_equal(imported(saved(tmp_path / "old.pth", old), norm=True), net.state_dict())


def refusal(path: Path) -> str:
    """What `check` and `run` say, in the same single line."""
    task = importing(path)
    with pytest.raises(ValueError, match=path.name) as at_check:
        task.check()
    with pytest.raises(ValueError, match=path.name) as at_run:
        task.run(Alone())
    assert str(at_check.value) == str(at_run.value)
    assert "\n" not in str(at_check.value)
    return str(at_check.value).removeprefix(f"{path}: ")


def test_what_does_not_fit_names_the_first_entry_and_counts_all(tmp_path: Path) -> None:
    first, *_, last = LAYERS
    other = {**LAYERS, last: torch.zeros(7)}
    assert refusal(saved(tmp_path / "a.pt", other)) == (
        f"does not fit toy-tiny: 'body.{last}' is (7,) in the file and (4,) in the network; 1 of 8 entries differ"
    )
    fewer = {name: tensor for name, tensor in LAYERS.items() if name != first} | {"extra": torch.zeros(2)}
    assert refusal(saved(tmp_path / "b.pt", fewer)) == (
        f"does not fit toy-tiny: 'body.{first}' is missing in the file and (3, 1, 3, 3) in the network; "
        "2 of 9 entries differ"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"args": argparse.Namespace(), "model": LAYERS}, "holds a pickled argparse.Namespace, and only tensors"),
        (NET, "holds a pickled tasks.models.network.Network, and only tensors are unpickled"),
        (
            {"weights": LAYERS, "epoch": 1},
            "no state dict, neither by itself nor under .*; found a mapping of weights, e",
        ),
        ([1, 2], "no state dict, .*; found list"),
        (b"", "not a checkpoint: neither safetensors nor what torch.save writes"),
        (b"\x80\x02.", "not a checkpoint"),
        (b"PK\x03\x04 torn", "not a checkpoint"),
        (save_safetensors(LAYERS)[:-3], "not a safetensors file"),
    ],
    ids=["namespace", "module", "names", "list", "empty", "pickle", "zip", "torn"],
)
def test_what_is_no_checkpoint_is_one_line(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "bad.pt"
    if content is NET:  # the test's own class is not to be imported by name
        buffer = io.BytesIO()
        torch.save(content, buffer)
        content = buffer.getvalue()
    saved(path, content)
    with pytest.raises(ValueError, match=message):
        importing(path).check()
    refusal(path)


def test_a_missing_file_is_one_line_before_its_step_has_a_name(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone.pt") == "cannot be read: No such file or directory"
    with pytest.raises(ValueError, match=r"gone\.pt: cannot be read: No such file or directory"):
        importing(tmp_path / "gone.pt").identity()


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    last = list(LAYERS)[-1]
    broken = {**LAYERS, last: torch.full_like(LAYERS[last], torch.nan)}
    with pytest.raises(ValueError, match=f"'body.{last}' has NaN or infinite values"):
        importing(saved(tmp_path / "a.pt", broken)).run(Alone())


def test_the_identity_holds_the_content_and_not_the_place(tmp_path: Path) -> None:
    one = importing(saved(tmp_path / "one.pt", save_safetensors(LAYERS)))
    two = importing(saved(tmp_path / "two.safetensors", save_safetensors(LAYERS)))
    assert one.identity() == two.identity()
    assert str(tmp_path) not in str(one.identity())
    before = one.identity()
    saved(tmp_path / "one.pt", save_safetensors(body_of(network(seed=4))))
    assert one.identity() != before
    assert TypeAdapter(ImportWeights).validate_python(one.model_dump(mode="json")) == one


def test_an_imported_network_is_measured_and_trained_on_like_a_finished_training(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    result = importing(saved(tmp_path / "mine.pt", LAYERS)).run(Alone())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert result.files["weights.safetensors"] == result.files["best.safetensors"]
    assert result.metrics["parameters"] == sum(parameter.numel() for parameter in NET.parameters())
    step = Finished(**result.files)
    step.metrics = result.metrics
    measured = Evaluate(data=Blobs(), architecture=Tiny(), split="validation").run(Alone(), trained=step)
    images = Blobs().load("validation")
    correct = int((NET.eval()(images.images.float() / 255).argmax(dim=1) == images.labels).sum())
    assert measured.metrics["correct"] == correct
    fields = {"optimizer": {"kind": "sgd", "learning_rate": 1e-12}, "epochs": 1, "batch_size": 8}
    tuned = Train.model_validate({"data": Blobs(), "architecture": Tiny(), **fields}).run(Alone(), start=step)
    for name, tensor in load_weights(tuned.files["weights.safetensors"]).tensors.items():
        assert torch.allclose(tensor, NET.state_dict()[name]), "it starts from the imported weights"


def test_an_import_takes_no_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="import-weights has no input 'mask'"):
        importing(saved(tmp_path / "mine.pt", LAYERS)).run(Alone(), mask=Finished())


def built(name: str, data: Signature = COLOUR, **fields: Any) -> nn.Module:
    with torch.random.fork_rng():
        return Torchvision(name=name, **fields).build(data).eval()


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0", "regnet_x_400mf"])
def test_torchvisions_own_checkpoint_gives_torchvisions_own_logits(tmp_path: Path, name: str) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs = models.get_model(name, weights=None, num_classes=10).eval()
    path = saved(tmp_path / "theirs.pth", theirs.state_dict())
    ours = built(name, mean=mean, std=std)
    task = ImportWeights(data=Colour(), architecture=Torchvision(name=name, mean=mean, std=std), path=path)
    task.check()
    restore(ours, task.run(Alone()).files["best.safetensors"])
    images = torch.rand(2, 3, 32, 32)
    normalised = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(normalised), atol=1e-5)
        assert theirs(normalised).std() > 0
    assert ours.state_dict()[output_layer(ours)].shape[0] == 10


def test_grey_images_reach_all_three_channels() -> None:
    net = built("resnet18", GREY)
    images = torch.rand(2, 1, 28, 28)
    seen: list[torch.Tensor] = []
    body = net.body
    assert isinstance(body, nn.Module)
    body.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    net(images)
    expected = ((images - 0.13) / 0.31).expand(2, 3, 28, 28)
    assert torch.allclose(seen[0], expected, atol=1e-6)


def test_the_network_is_known_without_its_weights_and_in_the_mode_of_training() -> None:
    with torch.device("meta"):
        net = Torchvision(name="regnet_x_400mf").build(COLOUR)
    assert {parameter.device.type for parameter in net.parameters()} == {"meta"}
    assert net.training
    assert all(layer.training for layer in net.modules())


def test_a_vision_transformer_is_built_for_the_size_of_the_images() -> None:
    with torch.device("meta"):
        net = Torchvision(name="vit_b_32").build(replace(COLOUR, height=64, width=64))
    assert net.state_dict()["body.encoder.pos_embedding"].shape == (1, 1 + 2 * 2, 768)


def test_heads_for_training_alone_are_left_out(tmp_path: Path) -> None:
    with torch.device("meta"):
        theirs = models.get_model("googlenet", weights=None, num_classes=10, init_weights=True)
    assert any(name.startswith("aux1.") for name in theirs.state_dict())
    path = saved(tmp_path / "theirs.pth", {name: torch.zeros(each.shape) for name, each in theirs.state_dict().items()})
    ImportWeights(data=Colour(), architecture=Torchvision(name="googlenet"), path=path).check()


@pytest.mark.parametrize("name", ["alexnet", "vit_b_32", "maxvit_t", "inception_v3", "densenet121"])
def test_images_that_a_network_does_not_take_are_refused_in_a_line(name: str) -> None:
    with pytest.raises(ValueError, match=f"torchvision's {name} does not take images of 1x28x28: .+") as refused:
        built(name, GREY)
    assert "\n" not in str(refused.value)


def test_an_unknown_name_offers_the_nearest_and_statistics_must_fit() -> None:
    with pytest.raises(ValidationError, match="torchvision has no classifier of this name; it has resnet18"):
        Torchvision(name="resnet-18")
    with pytest.raises(ValidationError, match="give both mean and std, or neither"):
        Torchvision(name="resnet18", mean=(0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="mean and std have 1 and 1 values, the images 3 channels"):
        built("resnet18", mean=(0.5,), std=(0.5,))
    chosen = TypeAdapter(Architecture).validate_python({"kind": "torchvision", "name": "resnet18"})
    assert isinstance(chosen, Torchvision)
