"""The line between two networks: its ends, its middle, its barriers, and norms that are measured anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import nn

from tasks.analysis.interpolation import Interpolate, barriers, between
from tasks.data import Signature
from tasks.measuring.predictions import predict
from tasks.models import Architecture
from tasks.models.initialise import initialise
from tasks.models.network import Network
from tasks.models.weights import restore, weights_to_bytes
from tasks.task import Alone
from tests.tasks.training_toys import Blobs, Finished, Tiny, resumed, toy, trained

pytestmark = pytest.mark.usefixtures("one_thread")

DATA, NET = Blobs(), Tiny()


class Flat(Architecture):
    """A linear classifier: its loss is convex in its weights."""

    kind: Literal["test-flat"] = "test-flat"

    def build(self, data: Signature) -> nn.Module:
        output = nn.Linear(36, data.classes)
        return Network(data, nn.Sequential(nn.Flatten(), output), output)


def line(architecture: Architecture = NET, **fields: Any) -> Interpolate:
    return Interpolate(**{"data": DATA, "architecture": architecture, "split": "validation", "points": 5, **fields})


def changed(step: Finished, change: Callable[[nn.Module], None], architecture: Architecture = NET) -> Finished:
    """The finished step with its network altered."""
    model = network_of(step, architecture)
    change(model)
    return Finished(step.metrics, {**step.files, "weights.safetensors": weights_to_bytes(model)})


def network_of(step: Finished, architecture: Architecture = NET) -> nn.Module:
    model = initialise(architecture, DATA.signature(), 0)
    restore(model, step.read("weights.safetensors"))
    return model.eval()


def loss_of(step: Finished, architecture: Architecture = NET) -> float:
    return predict(network_of(step, architecture), DATA.load("validation"), torch.device("cpu")).summary()["loss"]


def pair(**fields: Any) -> tuple[Finished, Finished]:
    return trained(toy(**fields)), trained(toy(**fields, seed=1, init_seed=1))


def test_barriers_are_what_the_papers_define() -> None:
    found = barriers([0.0, 0.25, 0.5, 0.75, 1.0], [0.1, 0.4, 0.2, 0.4, 0.3], [1.0, 1.2, 2.0, 3.0, 2.0])
    assert found["error_barrier"] == pytest.approx(0.4 - 0.2)
    assert found["loss_barrier"] == pytest.approx(3.0 - (0.25 * 1 + 0.75 * 2))
    assert found["barrier_at"] == 0.25
    assert not found["stable"]


def test_a_loss_that_sags_has_no_barrier_and_an_error_below_two_points_is_stable() -> None:
    found = barriers([0.0, 0.5, 1.0], [0.1, 0.11, 0.1], [1.0, 0.5, 2.0])
    assert found["loss_barrier"] == 0
    assert found["error_barrier"] == pytest.approx(0.01)
    assert found["stable"]


def test_a_point_is_the_weighted_mean_and_the_ends_are_exact() -> None:
    first, second = torch.tensor([0.1, -3.0, 1e-20]), torch.tensor([7.3, 0.0, 1e20])
    assert torch.equal(between(first, second, 0.0), first)
    assert torch.equal(between(first, second, 1.0), second)
    assert torch.equal(between(torch.tensor([1.0]), torch.tensor([5.0]), 0.25), torch.tensor([2.0]))
    assert torch.equal(between(torch.tensor(3), torch.tensor(9), 1.0), torch.tensor(3)), "a counter is no average"


def test_the_ends_of_the_line_are_the_networks_and_its_middle_their_mean() -> None:
    first, second = pair(architecture=Tiny(norm=True))
    net = Tiny(norm=True)
    found = line(net).run(Alone(), first=first, second=second).metrics
    assert found["alphas"] == [0, 0.25, 0.5, 0.75, 1]
    assert found["losses"][0] == loss_of(first, net)
    assert found["losses"][-1] == loss_of(second, net)
    other = network_of(second, net).state_dict()

    def halve(model: nn.Module) -> None:
        own = model.state_dict()
        mean = {name: (own[name] + other[name]) / 2 if own[name].is_floating_point() else own[name] for name in own}
        model.load_state_dict(mean)

    assert found["losses"][2] == pytest.approx(loss_of(changed(first, halve, net), net), rel=1e-5)


def test_the_line_from_a_network_to_itself_is_flat() -> None:
    first, _ = pair()
    found = line().run(Alone(), first=first, second=first).metrics
    assert len(set(found["errors"])) == len(set(found["losses"])) == 1
    assert found["error_barrier"] == found["loss_barrier"] == found["distance"] == 0
    assert found["stable"]


def test_a_convex_loss_has_no_barrier_and_networks_of_other_weights_have_one() -> None:
    first, second = pair(architecture=Flat())
    flat = line(Flat(), points=30, split="train").run(Alone(), first=first, second=second).metrics
    assert flat["loss_barrier"] <= 1e-6
    assert flat["distance"] > 1
    first, second = pair(epochs=12)
    assert line(points=30, split="train").run(Alone(), first=first, second=second).metrics["loss_barrier"] > 0.05


def test_the_best_networks_are_compared_when_asked_for() -> None:
    first, second = pair(epochs=6, data=Blobs(constant=True))  # the first epoch is the best of equals
    found = {name: line(weights=name).run(Alone(), first=first, second=second).metrics for name in ("last", "best")}
    assert found["last"]["losses"] != found["best"]["losses"]


def test_an_interrupted_walk_ends_at_the_same_bytes() -> None:
    inputs = dict(zip(("first", "second"), pair(architecture=Tiny(norm=True)), strict=True))
    task: Any = line(Tiny(norm=True), recalibrate=20)
    assert resumed(task, [2, 1], inputs).metrics == task.run(Alone(), **inputs).metrics


def test_recalibrated_norms_take_their_statistics_from_training_images() -> None:
    net = Tiny(norm=True)
    first, second = pair(architecture=net)

    def spoil(model: nn.Module) -> None:
        norm = model.get_submodule("body.1")
        norm.running_mean.fill_(50.0)  # type: ignore[union-attr,operator]
        norm.running_var.fill_(1e4)  # type: ignore[union-attr,operator]

    spoilt = changed(first, spoil, net), changed(second, spoil, net)
    fields = {"recalibrate": 44, "split": "validation"}
    found = line(net, **fields).run(Alone(), first=spoilt[0], second=spoilt[1]).metrics
    assert found == line(net, **fields).run(Alone(), first=first, second=second).metrics, "old statistics play no part"
    images = DATA.load("train").images.float() / 255
    features = network_of(first, net).get_submodule("body.0")((images - 0.5) / 0.25).detach()

    def measure(model: nn.Module) -> None:
        norm = model.get_submodule("body.1")
        norm.running_mean.copy_(features.mean(dim=(0, 2, 3)))  # type: ignore[union-attr,operator]
        norm.running_var.copy_(features.var(dim=(0, 2, 3)))  # type: ignore[union-attr,operator]

    assert found["losses"][0] == pytest.approx(loss_of(changed(first, measure, net), net), rel=1e-4)


def test_what_does_not_fit_is_said_in_one_line() -> None:
    first, _ = pair()
    other = trained(toy(architecture=Tiny(norm=True)))
    with pytest.raises(ValueError, match=r"the weights do not fit the model: the model has no 'body\.1"):
        line().run(Alone(), first=first, second=other)
    with pytest.raises(ValueError, match="recalibrate: the network has no batch norms"):
        line(recalibrate=8).run(Alone(), first=first, second=first)
    with pytest.raises(ValueError, match="examples is 100, but the validation split holds 40"):
        line(examples=100).run(Alone(), first=first, second=first)
