"""Measures agree with values worked out by hand, and an evaluation is exact however it is run."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.draws import Draws
from tasks.attacks.fgsm import FGSM
from tasks.attacks.pgd import PGD
from tasks.component import Component
from tasks.data import Signature
from tasks.measuring.calibration import expected_calibration_error
from tasks.measuring.evaluate import Evaluate
from tasks.measuring.merge import MergeOutcomes
from tasks.measuring.predictions import BLOCK, predict
from tasks.task import Alone, Result
from tests.tasks.attack_toys import (
    SIZES,
    Finished,
    Interrupted,
    SmallNet,
    Stopping,
    TwoFeatures,
    accuracy,
    pixels,
    robust_net,
    standard_net,
    step_of,
)
from tests.tasks.training_toys import Finished as Stored

ATTACKS = (FGSM(), PGD(steps=5))
EPSILONS = (0.02, 0.05, 0.06, 0.1)


def evaluate(context: Any = None, model: nn.Module | None = None, **fields: Any) -> Result:
    given: dict[str, Any] = {"attacks": ATTACKS, "epsilons": EPSILONS, "architecture": SmallNet(), **fields}
    return Evaluate(data=TwoFeatures(), **given).run(context or Alone(), trained=step_of(model or standard_net()))


def outcomes(result: Result) -> dict[str, torch.Tensor]:
    return load(result.files["outcomes.safetensors"])


class Staircase(SmallNet):
    """The small net behind quantised pixels: it has no gradient anywhere."""

    kind: Literal["two-features-staircase"] = "two-features-staircase"  # type: ignore[assignment]

    def build(self, data: Signature) -> nn.Module:
        net = super().build(data)
        net.normalise.register_forward_pre_hook(lambda _, given: ((given[0] * 16).round() / 16,))
        return net


class Cheat(Attack):
    """Returns images of the other class, far outside the ball."""

    kind: Literal["test-cheat"] = "test-cheat"

    def perturb(self, model: nn.Module, images: torch.Tensor, *rest: Any) -> torch.Tensor:
        return 1 - images


def test_calibration_error_of_a_case_worked_by_hand() -> None:
    # Bins of a fifteenth: .95 and .99 share the last one (accuracy 1/2, confidence .97), .62 is alone and right,
    # .4 is alone and wrong. (2 * .47 + 1 * .38 + 1 * .4) / 4 = .43
    confidences = torch.tensor([0.95, 0.99, 0.62, 0.4])
    correct = torch.tensor([True, False, True, False])
    assert expected_calibration_error(confidences, correct) == pytest.approx(0.43, abs=1e-6)
    assert expected_calibration_error(confidences, correct, bins=1) == pytest.approx(abs(2.96 / 4 - 0.5), abs=1e-6)


def test_a_calibration_bin_holds_its_upper_edge() -> None:
    together = expected_calibration_error(torch.tensor([0.5, 0.375]), torch.tensor([False, True]), bins=4)
    assert together == abs(0.875 - 1) / 2
    apart = expected_calibration_error(torch.tensor([0.5, 0.625]), torch.tensor([False, True]), bins=4)
    assert apart == (0.5 + 0.375) / 2


def test_calibration_error_is_zero_when_confidence_is_accuracy_and_one_when_sure_and_wrong() -> None:
    confidences = torch.full((10,), 0.7)
    assert expected_calibration_error(confidences, torch.arange(10) < 7) == pytest.approx(0, abs=1e-6)
    assert expected_calibration_error(torch.ones(4), torch.zeros(4, dtype=torch.bool)) == 1


def test_clean_measures_are_those_of_the_models_own_outputs() -> None:
    images, labels = pixels()
    net = robust_net()
    with torch.no_grad():
        probabilities = net(images).softmax(1)
    own = probabilities[torch.arange(len(labels)), labels]
    clean = evaluate(model=robust_net()).metrics["clean"]
    assert clean["accuracy"] == accuracy(robust_net(), images, labels)
    assert clean["nll"] == clean["loss"] == pytest.approx(float(-own.log().mean()), rel=1e-4)
    assert clean["confidence"] == pytest.approx(float(probabilities.amax(1).mean()), rel=1e-5)
    assert 0 < clean["ece"] < 1


def test_robust_accuracy_falls_with_epsilon_and_starts_from_what_is_right() -> None:
    for net in (standard_net(), robust_net()):
        metrics = evaluate(model=net, epsilons=(1e-7, *EPSILONS)).metrics
        robust = [level["accuracy"] for level in metrics["robust"]]
        assert robust[0] == metrics["clean"]["accuracy"]
        assert robust == sorted(robust, reverse=True)


def test_the_standard_net_falls_and_the_robust_one_stands() -> None:
    assert evaluate(model=standard_net()).metrics["robust"][-1]["accuracy"] < 0.02
    assert evaluate(model=robust_net()).metrics["robust"][-1]["accuracy"] > 0.85


def test_outcomes_of_examples_add_up_to_the_metrics() -> None:
    result = evaluate(model=robust_net(), epsilons=(0.05, 0.23, 0.26, 0.29, 0.35))
    found, metrics = outcomes(result), result.metrics
    broken_at, broken_by = found["broken_at"], found["broken_by"]
    correct = found["predictions"] == found["labels"]
    assert torch.equal(broken_at == 0, ~correct)
    assert torch.equal(broken_by == -1, ~correct | broken_at.isinf())
    assert metrics["correct"] == int(correct.sum()) < metrics["examples"] == SIZES["test"]
    assert ((found["distances"] <= broken_at * 1.00001) & (found["distances"].isinf() == broken_at.isinf())).all()
    for level in metrics["robust"]:
        radius = torch.tensor(level["epsilon"])
        assert level["accuracy"] == float((broken_at > radius).double().mean())
        by = {
            name: int(((broken_at == radius) & (broken_by == turn)).sum()) for turn, name in enumerate(("fgsm", "pgd"))
        }
        assert level["broken_by"] == by
    assert len(broken_at.unique()) >= 3


class Counting(PGD):
    """Notes how many images it is given, and at which epsilons."""

    kind: Literal["test-counting"] = "test-counting"  # type: ignore[assignment]
    met: ClassVar[list[list[float]]] = []

    def search(self, model: nn.Module, images: torch.Tensor, labels: Any, epsilon: Any, draws: Any) -> torch.Tensor:
        self.met.append(epsilon.tolist())
        return super().search(model, images, labels, epsilon, draws)


def test_the_first_attack_walks_the_epsilons_upward_over_its_survivors() -> None:
    Counting.met.clear()
    metrics = evaluate(attacks=(Counting(steps=2),)).metrics
    standing = [metrics["correct"], *(round(level["accuracy"] * SIZES["test"]) for level in metrics["robust"])]
    expected = [
        [torch.tensor(epsilon).item()] * min(BLOCK, left - first)
        for epsilon, left in zip(EPSILONS, standing, strict=False)
        for first in range(0, left, BLOCK)
    ]
    assert Counting.met == expected
    assert standing[-2] < standing[0]


def test_a_later_attack_fails_once_on_each_example_that_stands_and_never_above() -> None:
    Counting.met.clear()
    alone = outcomes(evaluate(attacks=(FGSM(),)))["broken_at"]
    both = evaluate(attacks=(FGSM(), Counting(steps=2)))
    after = outcomes(both)["broken_at"]
    grid = torch.tensor([0.0, *EPSILONS, torch.inf])
    before_level, after_level = torch.searchsorted(grid, alone), torch.searchsorted(grid, after)
    met = alone > grid[1]  # what already fell at the smallest epsilon is not met
    successes = (before_level - after_level)[met].sum()
    failures = (after > grid[1])[met].sum()
    assert sum(map(len, Counting.met)) == int(successes + failures)
    assert successes > 0
    assert (after <= alone).all()


def test_what_happens_to_an_example_depends_neither_on_batch_nor_on_shard() -> None:
    for net in (standard_net(), robust_net()):
        task = {"model": net, "attacks": (FGSM(), PGD(steps=3, restarts=2))}
        whole = evaluate(**task).files["outcomes.safetensors"]
        assert evaluate(**task, batch=8).files["outcomes.safetensors"] == whole
        shards = {f"shard{first:04}": evaluate(**task, first=first, count=67) for first in range(0, 300, 67)}
        merged = MergeOutcomes(attacks=task["attacks"], classes=10).run(
            Alone(), **{name: Stored(shard.metrics, shard.files) for name, shard in reversed(shards.items())}
        )
        assert merged.files["outcomes.safetensors"] == whole
        for name in ("clean", "robust", "examples", "correct"):
            assert merged.metrics[name] == evaluate(**task).metrics[name]
        assert merged.metrics["costs"]["pgd"] == evaluate(**task).metrics["costs"]["pgd"]


def test_random_numbers_belong_to_an_example_and_an_attack() -> None:
    drawn: list[torch.Tensor] = []

    class Drawing(Attack):
        kind: Literal["test-drawing"] = "test-drawing"

        def search(
            self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: torch.Tensor, draws: Draws
        ) -> torch.Tensor:
            drawn.append(draws.uniform((1,)))
            return images

    evaluate(attacks=(Drawing(), Drawing()), epsilons=(0.1, 0.2))
    at_once = torch.cat(drawn).flatten()
    first_attack, second_attack = at_once[: 2 * len(at_once) // 3], at_once[2 * len(at_once) // 3 :]
    at_first, at_second = first_attack.chunk(2)
    assert torch.equal(at_first, at_second)  # the same at every epsilon
    assert len(at_first.unique()) == len(at_first)
    assert not (at_first == second_attack).any()


def test_the_cost_counts_every_image_that_went_through_the_model() -> None:
    net = robust_net()
    metrics = evaluate(model=net, attacks=(FGSM(),), epsilons=(1e-6,)).metrics
    assert metrics["costs"]["clean"] == metrics["examples"]
    assert metrics["costs"]["fgsm"] == metrics["correct"] * 2
    assert metrics["cost"] == sum(metrics["costs"].values())


def test_images_outside_the_ball_do_not_count() -> None:
    metrics = evaluate(attacks=(Cheat(),), epsilons=(0.05,)).metrics
    assert metrics["robust"][0]["accuracy"] == metrics["clean"]["accuracy"]
    assert f"test-cheat returned {metrics['correct']} images outside the ball" in metrics["warnings"][0]


def test_an_evaluation_interrupted_at_any_block_ends_with_the_same_bytes() -> None:
    whole = Stopping()
    expected = evaluate(whole, model=standard_net())
    assert len(whole.states) > 6
    for stop_after in range(1, len(whole.states) + 1):
        first = Stopping(stop_after=stop_after)
        with pytest.raises(Interrupted):
            evaluate(first)
        torch.rand(3)  # whatever else the process did meanwhile
        resumed = Stopping(first.states[-1])
        result = evaluate(resumed)
        assert result.metrics == expected.metrics
        assert result.files == expected.files
        assert len(resumed.states) - 1 == len(whole.states) - stop_after  # nothing was done twice


def test_an_evaluation_leaves_the_global_generator_alone_and_does_not_depend_on_it() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        before = torch.random.get_rng_state()
        first = evaluate()
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(2)
        assert evaluate().files == first.files
    assert evaluate(seed=1, attacks=(PGD(steps=1),)).files != evaluate(seed=2, attacks=(PGD(steps=1),)).files


def test_progress_rises_to_its_end() -> None:
    context = Stopping()
    evaluate(context)
    assert context.reported == sorted(context.reported)
    assert context.reported[-1] == (SIZES["test"], SIZES["test"], "")


def test_a_part_of_the_split_is_stratified_and_recorded() -> None:
    found = outcomes(evaluate(examples=51, seed=3))
    labels = pixels()[1]
    assert torch.equal(found["labels"], labels[found["indices"]])
    assert sorted(found["labels"].bincount().tolist()) == [25, 26]
    assert found["indices"].unique().numel() == 51
    other = outcomes(evaluate(examples=51, seed=4))
    assert not torch.equal(found["indices"], other["indices"])
    whole = outcomes(evaluate())
    assert torch.equal(found["predictions"], whole["predictions"][found["indices"]])


def test_validation_is_measured_on_validation() -> None:
    found = outcomes(evaluate(split="validation"))
    assert torch.equal(found["labels"], pixels("validation")[1])


def test_best_and_last_weights_are_different_files() -> None:
    trained = Finished(**{"weights.safetensors": step_of(standard_net()).read("weights.safetensors")})
    trained.files["best.safetensors"] = step_of(robust_net()).read("best.safetensors")
    task = {"data": TwoFeatures(), "architecture": SmallNet(), "attacks": ATTACKS, "epsilons": EPSILONS}
    last = Evaluate(**task).run(Alone(), trained=trained)
    best = Evaluate(weights="best", **task).run(Alone(), trained=trained)
    assert last.files == evaluate(model=standard_net()).files
    assert best.files == evaluate(model=robust_net()).files


def test_masked_gradients_are_reported() -> None:
    metrics = evaluate(architecture=Staircase()).metrics
    assert metrics["robust"][-1]["accuracy"] > 0.9  # the attack is blind, not the network strong
    assert any("the gradient is zero" in warning for warning in metrics["warnings"])
    assert evaluate().metrics["warnings"] == []


def test_one_step_that_beats_many_is_reported() -> None:
    lame = PGD(steps=1, relative_step=1e-6)
    warnings = evaluate(attacks=(lame, FGSM()), epsilons=(0.1,)).metrics["warnings"]
    assert len(warnings) == 1
    assert "gradients may be masked" in warnings[0]


def test_standing_where_every_image_can_be_grey_is_reported() -> None:
    lame = PGD(steps=1, relative_step=1e-6)
    warnings = evaluate(model=robust_net(), attacks=(lame,), epsilons=(0.5,)).metrics["warnings"]
    assert any("grey image" in warning for warning in warnings)
    assert evaluate(model=robust_net(), epsilons=(0.5,)).metrics["warnings"] == []


def test_two_attacks_of_one_kind_are_told_apart() -> None:
    level = evaluate(attacks=(PGD(steps=1), FGSM(), PGD(steps=5))).metrics["robust"][1]
    assert list(level["broken_by"]) == ["pgd-1", "fgsm", "pgd-2"]


def test_clean_accuracy_alone_needs_no_attack() -> None:
    result = evaluate(attacks=(), epsilons=())
    assert result.metrics["robust"] == []
    assert result.metrics["warnings"] == []
    assert outcomes(result)["broken_at"].isinf().sum() == result.metrics["correct"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epsilons": (0.1, 0.1)}, "epsilons must rise, but 0.1 is followed by 0.1"),
        ({"epsilons": (0.2, 0.1)}, "epsilons must rise"),
        ({"epsilons": (0.0,)}, "greater than 0"),
        ({"epsilons": (0.5, 1.5)}, "at most 1 in norm linf"),
        ({"epsilons": ()}, "attacks and epsilons go together"),
        ({"attacks": ()}, "attacks and epsilons go together"),
        ({"attacks": (FGSM(), FGSM(norm="l2"))}, "share one norm"),
        ({"examples": 0}, "greater than or equal to 1"),
        ({"split": "train"}, "'validation' or 'test'"),
    ],
    ids=str,
)
def test_a_wrong_request_is_one_clear_line(fields: dict[str, Any], message: str) -> None:
    given = {"data": TwoFeatures(), "architecture": SmallNet(), "attacks": ATTACKS, "epsilons": EPSILONS, **fields}
    with pytest.raises(ValidationError, match=message):
        Evaluate(**given)


def test_more_examples_than_there_are_is_one_clear_line() -> None:
    with pytest.raises(ValueError, match="examples is 301, but the test split holds 300"):
        evaluate(examples=301)


def test_a_model_that_says_nothing_finite_is_refused() -> None:
    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.full((len(images), 2), torch.nan)

    with pytest.raises(ValueError, match="not finite on 300 of 300 images"):
        predict(Broken(), TwoFeatures().load("test"), torch.device("cpu"))


def test_the_identity_names_attacks_by_what_they_compute() -> None:
    task = Evaluate(data=TwoFeatures(), architecture=SmallNet(), attacks=("fgsm", {"kind": "pgd"}), epsilons=[0.1])
    assert isinstance(task.attacks[1], Component)
    identity = task.identity()
    assert identity["attacks"] == [{"kind": "fgsm"}, {"kind": "pgd", "version": 2}]
    assert identity["epsilons"] == [0.1]
    assert "gpus" not in identity
