"""Accuracy under corruption is what a count by hand says, however the task is run."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load
from torch import nn

from tasks.attacks.draws import Draws
from tasks.component import kind_of
from tasks.corruptions import BENCHMARK, benchmark
from tasks.corruptions.contrast import Contrast
from tasks.corruptions.gaussian_noise import GaussianNoise
from tasks.corruptions.impulse_noise import ImpulseNoise
from tasks.corruptions.spatter import Spatter
from tasks.data import Signature
from tasks.measuring import corrupted
from tasks.measuring.calibration import expected_calibration_error
from tasks.measuring.corrupted import EvaluateCorrupted
from tasks.models.network import Network
from tasks.models.small_cnn import SmallCNN
from tasks.task import Alone, Result
from tests.tasks import digits
from tests.tasks.attack_toys import SIZES, Interrupted, SmallNet, Stopping, TwoFeatures, standard_net, step_of

SOME = (ImpulseNoise(), Spatter(), Contrast())


def evaluate(context: Any = None, model: nn.Module | None = None, **fields: Any) -> Result:
    given: dict[str, Any] = {"corruptions": SOME, "severities": (1, 5), "architecture": SmallNet(), **fields}
    task = EvaluateCorrupted(data=TwoFeatures(), **given)
    return task.run(context or Alone(), trained=step_of(model or standard_net()))


def outcomes(result: Result) -> dict[str, torch.Tensor]:
    return load(result.files["outcomes.safetensors"])


def test_figures_are_those_counted_by_hand() -> None:
    result = evaluate(seed=3)
    examples = TwoFeatures().load("test")
    net, draws, found = standard_net(), Draws(3, torch.arange(SIZES["test"])), outcomes(result)
    shares = []
    for place, corruption in enumerate(SOME):
        for level, severity in enumerate((1, 5)):
            images = corruption.corrupt(examples.images, severity, draws).float() / 255
            with torch.no_grad():
                confidences, classes = net(images).double().softmax(dim=1).max(dim=1)
            right = classes == examples.labels
            figures = result.metrics["corruptions"][kind_of(type(corruption))]["severities"][level]
            assert torch.equal(found["correct"][place, level], right)
            assert torch.allclose(found["confidences"][place, level].double(), confidences, atol=1e-6)
            assert (figures["severity"], figures["correct"]) == (severity, int(right.sum()))
            assert figures["accuracy"] == int(right.sum()) / SIZES["test"]
            assert figures["low"] <= figures["accuracy"] <= figures["high"]
            assert figures["ece"] == pytest.approx(expected_calibration_error(confidences, right), abs=1e-4)
            assert figures["confidence_right"] == pytest.approx(float(confidences[right].mean()), abs=1e-6)
            if right.all():
                assert figures["confidence_wrong"] is None
            else:
                assert figures["confidence_wrong"] == pytest.approx(float(confidences[~right].mean()), abs=1e-6)
            shares.append(figures["accuracy"])
    assert result.metrics["mean_given"] == pytest.approx(sum(shares) / 6)
    assert result.metrics["corruptions"]["spatter"]["accuracy"] == pytest.approx(sum(shares[2:4]) / 2)
    with torch.no_grad():
        clean = net(examples.images.float() / 255).argmax(dim=1) == examples.labels
    assert torch.equal(found["clean_correct"], clean)
    assert result.metrics["correct"] == int(clean.sum())
    assert result.metrics["clean"]["accuracy"] == int(clean.sum()) / SIZES["test"]
    assert result.metrics["cost"] == 7 * SIZES["test"]
    assert 1 / 2 < min(shares) < max(shares) == 1  # so both cases above were met
    json.dumps(result.metrics, allow_nan=False)


def test_the_mean_is_that_of_the_whole_benchmark_or_none() -> None:
    whole = evaluate(corruptions=(*benchmark(), Spatter()), severities=(1, 2, 3, 4, 5), examples=40)
    entries = whole.metrics["corruptions"]
    assert list(entries) == [*BENCHMARK, "spatter"]
    mean = sum(entries[kind]["accuracy"] for kind in BENCHMARK) / 15
    assert whole.metrics["mean"] == pytest.approx(mean)
    assert whole.metrics["mean_given"] == pytest.approx((15 * mean + entries["spatter"]["accuracy"]) / 16)
    assert evaluate(corruptions=benchmark(), severities=(1, 2, 3, 4), examples=40).metrics["mean"] is None
    assert evaluate(corruptions=benchmark()[1:], severities=(1, 2, 3, 4, 5), examples=40).metrics["mean"] is None


def test_the_order_of_corruptions_changes_no_outcome() -> None:
    forward, backward = evaluate(), evaluate(corruptions=SOME[::-1])
    assert torch.equal(outcomes(forward)["correct"], outcomes(backward)["correct"].flip(0))
    assert torch.equal(outcomes(forward)["confidences"], outcomes(backward)["confidences"].flip(0))
    assert forward.metrics["corruptions"] == backward.metrics["corruptions"]


def test_an_example_has_the_same_outcome_among_fewer() -> None:
    every, some = outcomes(evaluate()), outcomes(evaluate(examples=50))
    assert len(some["indices"]) == 50
    assert torch.equal(some["correct"], every["correct"][:, :, some["indices"]])
    assert torch.equal(some["confidences"], every["confidences"][:, :, some["indices"]])


def test_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate()
    monkeypatch.setattr(corrupted, "TOGETHER", 7)
    assert evaluate() == whole


def test_the_seed_decides_what_is_random() -> None:
    first, second = outcomes(evaluate()), outcomes(evaluate(seed=1))
    assert not torch.equal(first["confidences"][:2], second["confidences"][:2])
    assert torch.equal(first["confidences"][2], second["confidences"][2])  # contrast is not


@pytest.mark.parametrize("stop_after", [1, 3, 6])
def test_resumed_evaluation_is_bit_identical_and_repeats_nothing(stop_after: int) -> None:
    stopping = Stopping(stop_after=stop_after)
    with pytest.raises(Interrupted):
        evaluate(stopping)
    torch.manual_seed(stop_after)
    going_on = Stopping(stopping.states[-1])
    assert evaluate(going_on) == evaluate()
    kinds = ("impulse-noise", "spatter", "contrast")
    pairs = [(place, 6, f"{kinds[place // 2]} {(1, 5)[place % 2]}") for place in range(6)]
    assert going_on.reported == [*pairs[stop_after:], (6, 6, "")]


class Tossing(SmallNet):
    """The small net behind a coin toss."""

    kind: Literal["two-features-tossing"] = "two-features-tossing"  # type: ignore[assignment]

    def build(self, data: Signature) -> nn.Module:
        net = super().build(data)
        assert isinstance(net, Network)
        net.register_forward_pre_hook(lambda _, given: (given[0] + torch.randn_like(given[0]) * 0.2,))
        return net


def test_a_network_that_tosses_coins_is_measured_the_same_every_time() -> None:
    stopping = Stopping(stop_after=2)
    with pytest.raises(Interrupted):
        evaluate(stopping, architecture=Tossing())
    torch.manual_seed(5)
    resumed = evaluate(Stopping(stopping.states[-1]), architecture=Tossing())
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(5)))
    assert resumed == evaluate(architecture=Tossing())
    assert not torch.equal(outcomes(resumed)["confidences"], outcomes(evaluate())["confidences"])


def test_each_corruption_is_part_of_the_identity() -> None:
    default = EvaluateCorrupted(data=TwoFeatures(), architecture=SmallNet())
    assert default.corruptions == benchmark()
    assert [named["kind"] for named in default.identity()["corruptions"]] == list(BENCHMARK)
    by_name = EvaluateCorrupted(data=TwoFeatures(), architecture=SmallNet(), corruptions=BENCHMARK)
    assert by_name.identity() == default.identity()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"severities": (1, 1)}, "severities must rise, but 1 is followed by 1"),
        ({"severities": (0,)}, "greater than or equal to 1"),
        ({"severities": (6,)}, "less than or equal to 5"),
        ({"severities": ()}, "at least 1"),
        ({"corruptions": ()}, "at least 1"),
        ({"corruptions": ("fog", "snow", "fog")}, "fog is given more than once"),
        ({"corruptions": ("frog",)}, "did you mean 'fog'"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EvaluateCorrupted(data=TwoFeatures(), architecture=SmallNet(), **fields)


def test_digits_are_harder_to_read_the_more_they_are_corrupted() -> None:
    kinds = ("impulse-noise", "glass-blur", "motion-blur", "zoom-blur", "fog")
    task = EvaluateCorrupted(
        data=digits.DATA, architecture=SmallCNN(), corruptions=(*kinds, GaussianNoise()), severities=(1, 5)
    )
    metrics = task.run(Alone(), trained=digits.step_of("standard")).metrics
    clean = metrics["clean"]["accuracy"]
    for kind in kinds:
        weak, strong = (entry["accuracy"] for entry in metrics["corruptions"][kind]["severities"])
        assert clean >= weak > strong, kind
    assert metrics["corruptions"]["gaussian-noise"]["accuracy"] > clean - 0.02  # strokes stand far above this noise
