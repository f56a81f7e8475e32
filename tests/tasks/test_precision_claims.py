"""What coarse features and robust training do to a network: the claims, on the embedded digits."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from tasks.analysis.sensitivity import FilterSensitivity
from tasks.attacks import Attack
from tasks.attacks.bpda import BPDA
from tasks.attacks.pgd import PGD
from tasks.attacks.square import Square
from tasks.attacks.transfer import Transfer
from tasks.measuring.evaluate import Evaluate
from tasks.models import Architecture
from tasks.models.quantised import Quantised
from tasks.models.small_cnn import SmallCNN
from tasks.task import Alone
from tests.tasks import digits

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

NAIVE, ADAPTIVE = "none", "straight-through"


def rounded(step: float, gradient: Any) -> Quantised:
    return Quantised(base=SmallCNN(), after=("conv1",), step=step, gradient=gradient)


@cache
def robust(architecture: Architecture, *attacks: Attack) -> tuple[float, list[str]]:
    """Accuracy of the standard network under attacks at radius 0.1, and the warnings."""
    twins = {"twin": SmallCNN()} if any(isinstance(attack, Transfer) for attack in attacks) else {}
    task = Evaluate(
        data=digits.DATA,
        architecture=architecture,
        attacks=attacks,
        epsilons=(0.1,),
        examples=300,
        surrogates=twins,
    )
    step = digits.step_of("standard")
    metrics = task.run(Alone(), trained=step, **dict.fromkeys(twins, step)).metrics
    return metrics["robust"][0]["accuracy"], metrics["warnings"]


@pytest.mark.parametrize("step", [0.25, 2.0])
def test_rounding_makes_a_network_look_robust_to_gradients_only(step: float) -> None:
    naive, warnings = robust(rounded(step, NAIVE), PGD(steps=40))
    adaptive, _ = robust(rounded(step, ADAPTIVE), PGD(steps=40))
    assert naive >= 0.95
    assert adaptive < naive - 0.05
    assert any("gradient is zero" in warning for warning in warnings)
    assert any("withstand a change of every pixel" in warning for warning in warnings)


def test_fine_rounding_protects_from_little_once_gradients_see_through_it() -> None:
    full, _ = robust(SmallCNN(), PGD(steps=40))
    adaptive, _ = robust(rounded(0.25, ADAPTIVE), PGD(steps=40))
    assert adaptive < 0.75
    assert abs(adaptive - full) < 0.15


def test_seeing_through_by_the_network_or_by_the_attack_is_the_same() -> None:
    by_network, _ = robust(rounded(0.5, ADAPTIVE), PGD(steps=40))
    by_attack, _ = robust(rounded(0.5, NAIVE), BPDA(attack=PGD(steps=40), through=("rounding",)))
    assert by_attack == pytest.approx(by_network, abs=0.04)


def test_at_coarse_steps_the_black_box_finds_more_than_straight_through_gradients() -> None:
    adaptive, silent = robust(rounded(2.0, ADAPTIVE), PGD(steps=40))
    square, _ = robust(rounded(2.0, ADAPTIVE), Square(queries=1000))
    assert square < adaptive - 0.04
    assert not silent  # gradients that pass straight through do not look masked: it takes the black box to tell
    _, warnings = robust(rounded(2.0, ADAPTIVE), PGD(steps=40), Square(queries=1000))
    assert any("square broke" in warning and "gradients may be masked" in warning for warning in warnings)


def test_images_of_the_unrounded_twin_break_fine_rounding_as_well() -> None:
    adaptive, _ = robust(rounded(0.5, ADAPTIVE), PGD(steps=40))
    transferred, _ = robust(rounded(0.5, NAIVE), Transfer(source="twin", steps=40))
    assert transferred < adaptive


def test_robust_training_lowers_the_largest_gain_of_the_first_layer_and_the_change_behind_the_others() -> None:
    standard, trained = (
        FilterSensitivity(data=digits.DATA, architecture=SmallCNN(), epsilon=0.1, examples=300)
        .run(Alone(), trained=digits.step_of(name))
        .metrics
        for name in ("standard", "pgd")
    )
    assert trained["filters"]["mean"] < 0.92 * standard["filters"]["mean"]
    for robust_layer, layer in list(zip(trained["layers"], standard["layers"], strict=True))[1:]:
        assert robust_layer["change"] < 0.8 * layer["change"], layer["layer"]
