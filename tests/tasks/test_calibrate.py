"""Calibration under attack: how sure a network is of its mistakes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tasks.data import Examples
from tasks.measuring.calibrate import CalibrateAttacked
from tasks.models.small_cnn import SmallCNN
from tasks.task import Alone
from tests.tasks import digits
from tests.tasks.attack_toys import Interrupted, Stopping

EPSILONS = (0.05, 0.1)


def calibrate(name: digits.Name, context: Any = None, **fields: Any) -> dict[str, Any]:
    task = CalibrateAttacked(
        data=digits.DATA, architecture=SmallCNN(), **{"epsilons": EPSILONS, "examples": 300, **fields}
    )
    return task.run(context or Alone(), trained=digits.step_of(name)).metrics


def test_a_standard_network_is_surer_of_its_mistakes_under_attack_than_a_robust_one() -> None:
    standard, robust = calibrate("standard")["levels"], calibrate("pgd")["levels"]
    assert standard[-1]["confidence_wrong"] > robust[-1]["confidence_wrong"] + 0.05
    assert standard[-1]["confidence_wrong"] > standard[0]["confidence_wrong"]
    assert standard[-1]["ece"] > robust[-1]["ece"]


def test_without_attack_it_is_the_models_own_confidence() -> None:
    unattacked = calibrate("standard", examples=None)["levels"][0]
    images, labels = digits.pixels(2000)
    with torch.no_grad():
        confidence, classes = digits.net("standard")(images).softmax(dim=1).max(dim=1)
    right = classes == labels
    assert unattacked["epsilon"] == 0
    assert unattacked["accuracy"] == float(right.double().mean())
    assert unattacked["confidence"] == pytest.approx(float(confidence.mean()), rel=1e-5)
    assert unattacked["confidence_wrong"] == pytest.approx(float(confidence[~right].mean()), rel=1e-4)


def test_accuracy_falls_with_epsilon_and_no_example_stops_early() -> None:
    metrics = calibrate("pgd", steps=10)
    accuracies = [level["accuracy"] for level in metrics["levels"]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert metrics["cost"] == 300 * (1 + 2 * (10 + 1))


def test_interrupted_at_any_level_it_ends_the_same() -> None:
    whole = calibrate("standard", steps=3)
    for stop_after in (1, 2, 3):
        first = Stopping(stop_after=stop_after)
        with pytest.raises(Interrupted):
            calibrate("standard", first, steps=3)
        assert calibrate("standard", Stopping(first.states[-1]), steps=3) == whole


def test_labels_that_the_network_does_not_know_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    shifted = digits.test_part().labels + 1
    examples = Examples(digits.test_part().images, shifted)
    monkeypatch.setattr(type(digits.DATA), "load", lambda self, split: examples)
    with pytest.raises(ValueError, match="label 10 is none of the model's 10 classes"):
        calibrate("standard", examples=None)


def test_a_radius_that_exceeds_the_range_is_one_clear_line() -> None:
    with pytest.raises(ValidationError, match=r"epsilon is 1.5, but images lie in \[0, 1\]"):
        calibrate("standard", epsilons=(0.5, 1.5))


def test_epsilons_that_do_not_rise_are_one_clear_line() -> None:
    with pytest.raises(ValidationError, match=r"epsilons must rise, but 0.1 is followed by 0.05"):
        calibrate("standard", epsilons=(0.1, 0.05))
