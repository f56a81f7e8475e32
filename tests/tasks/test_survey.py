"""A survey and cells that start from it find what each radius alone finds, for less."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.apgd import APGD
from tasks.attacks.ddn import DDN
from tasks.attacks.fgsm import FGSM
from tasks.attacks.pgd import PGD
from tasks.attacks.square import Square
from tasks.data import Signature
from tasks.measuring.evaluate import Evaluate
from tasks.measuring.ladder import ladder, scout
from tasks.measuring.masking import warnings
from tasks.measuring.outcomes import FILE, Outcomes, Threat
from tasks.measuring.spectrum import spectrum
from tasks.models.small_cnn import SmallCNN
from tasks.task import Alone
from tests.tasks import digits
from tests.tasks.attack_toys import Interrupted, SmallNet, Stopping, TwoFeatures, robust_net, standard_net, step_of
from tests.tasks.test_masking import Altered
from tests.tasks.training_toys import Finished

pytestmark = pytest.mark.usefixtures("one_thread")

NETS: tuple[digits.Name, ...] = ("standard", "fgsm-rs", "pgd")
DELTAS = tuple(k / 20 for k in range(1, 9))
BETWEEN = tuple(k / 20 + 0.03 for k in range(1, 5))
"""Radii that are no rungs of the ladder."""
COUNT = 200
SEVERAL = (PGD(), APGD(steps=10))


def on_digits(name: digits.Name, attacks: tuple[Attack, ...], *epsilons: float, **fields: Any) -> Finished:
    known = {"known": fields.pop("known")} if "known" in fields else {}
    task = Evaluate(
        **{
            "data": digits.DATA,
            "architecture": SmallCNN(),
            "attacks": attacks,
            "epsilons": epsilons,
            "examples": COUNT,
            **fields,
        }
    )
    result = task.run(Alone(), trained=digits.step_of(name), **known)
    return Finished(result.metrics, result.files)


@cache
def survey(name: digits.Name, *attacks: Attack, **fields: Any) -> Finished:
    rungs = ladder(attacks[0].norm, digits.DATA.signature())
    return on_digits(name, (scout(attacks[0].norm), *attacks), *rungs, descend=True, **fields)


@cache
def cell(name: digits.Name, delta: float, *attacks: Attack) -> Finished:
    return on_digits(name, (scout(attacks[0].norm), *attacks), delta, known=survey(name, *attacks))


@cache
def alone(name: digits.Name, delta: float, *attacks: Attack) -> Finished:
    return on_digits(name, attacks, delta)


def outcomes(step: Any) -> Outcomes:
    return Outcomes.from_bytes(step.files[FILE])


def toys(context: Any = None, model: nn.Module | None = None, known: Any = None, **fields: Any) -> Finished:
    """An evaluation of a small net in milliseconds."""
    given: dict[str, Any] = {"attacks": (FGSM(), PGD(steps=5)), "epsilons": (0.1,), **fields}
    inputs = {} if known is None else {"known": known}
    task = Evaluate(data=TwoFeatures(), architecture=SmallNet(), **given)
    result = task.run(context or Alone(), trained=step_of(model or robust_net()), **inputs)
    return Finished(result.metrics, result.files)


def toy_survey(**fields: Any) -> Finished:
    return toys(epsilons=ladder("linf", TwoFeatures().signature()), descend=True, **fields)


class Noting(PGD):
    """Notes at which radii it meets how many images."""

    kind: Literal["test-noting"] = "test-noting"  # type: ignore[assignment]
    met: ClassVar[list[list[float]]] = []

    def search(self, model: nn.Module, images: torch.Tensor, labels: Any, epsilon: Any, draws: Any) -> torch.Tensor:
        self.met.append([round(radius, 6) for radius in epsilon.tolist()])
        return super().search(model, images, labels, epsilon, draws)


def require_same_verdicts(name: digits.Name, deltas: tuple[float, ...], *attacks: Attack) -> None:
    """They differ at 1 % of the examples at most, and those are nearly all examples that the cell breaks."""
    for delta in deltas:
        found = outcomes(cell(name, delta, *attacks)).broken_at.isinf()
        expected = outcomes(alone(name, delta, *attacks)).broken_at.isinf()
        assert int((found != expected).sum()) <= COUNT // 100
        assert int((found & ~expected).sum()) <= COUNT // 200


@pytest.mark.parametrize("name", NETS)
def test_cells_find_what_each_radius_alone_finds(name: digits.Name) -> None:
    require_same_verdicts(name, DELTAS, PGD())


def test_cells_between_the_rungs_and_of_several_attacks_find_it_too() -> None:
    require_same_verdicts("pgd", BETWEEN, PGD())
    require_same_verdicts("fgsm-rs", (0.2, 0.23), *SEVERAL)


@pytest.mark.parametrize(("name", "share"), [("standard", 0.55), ("fgsm-rs", 0.43), ("pgd", 0.43)])
def test_a_survey_and_eight_cells_cost_less_than_half_of_eight_evaluations(name: digits.Name, share: float) -> None:
    steps = [survey(name, PGD()), *(cell(name, delta, PGD()) for delta in DELTAS)]
    apart = [alone(name, delta, PGD()) for delta in DELTAS]

    def cost(of: list[Finished]) -> int:
        return sum(int(step.metrics["cost"]) for step in of)

    def attacking(of: list[Finished]) -> int:
        return cost(of) - sum(int(step.metrics["costs"]["probes"]) for step in of)

    assert cost(steps) < 0.4 * cost(apart)
    assert attacking(steps) < share * attacking(apart)  # probes weigh little among many examples


def test_cells_agree_with_all_their_radii_at_once_and_so_do_not_depend_on_each_other() -> None:
    deltas = (0.08, 0.13, 0.15, 0.21, 0.6)
    together = on_digits("pgd", (scout("linf"), PGD()), *deltas, known=survey("pgd", PGD()))
    joined = spectrum([outcomes(cell("pgd", delta, PGD())) for delta in deltas])
    assert torch.equal(joined.broken_at, outcomes(together).broken_at)
    assert set(joined.broken_at.tolist()) == set(torch.tensor([0, *deltas]).tolist())


def test_honest_networks_are_not_flagged_by_their_survey_nor_by_its_cells() -> None:
    attacks = (PGD(), FGSM(), Square(queries=50))
    for name in NETS:
        assert survey(name, *attacks).metrics["warnings"] == []
        assert cell(name, 0.2, *attacks).metrics["warnings"] == []


def test_a_survey_says_once_what_hides_gradients() -> None:
    attacks = (PGD(), Square(queries=200))
    fields = {"architecture": Altered(by="round"), "examples": 40}
    found = on_digits(
        "standard", (scout("linf"), *attacks), *ladder("linf", digits.DATA.signature()), descend=True, **fields
    )
    lines = found.metrics["warnings"]
    assert len([line for line in lines if "square broke" in line]) == 1
    assert any("gradient is zero" in line for line in lines)
    taken = on_digits("standard", (scout("linf"), *attacks), 0.2, known=found, **fields)
    assert taken.metrics["probes"] == found.metrics["probes"]
    assert any("gradient is zero" in line for line in taken.metrics["warnings"])


def test_a_survey_probes_where_some_images_fall_and_others_stand() -> None:
    # At the middle rung, and at 0.1, everything stands: no probe would tell that this network clamps its inputs.
    found = survey("standard", PGD(), architecture=Altered(by="clamp"))
    assert any("clamps or saturates its inputs" in line for line in found.metrics["warnings"])


def test_a_win_at_a_smaller_radius_is_no_sign_at_a_larger_one() -> None:
    # The second attack came nearer than the first, at rung 0.1; whether the first had succeeded at 0.2 is not known.
    count = 20
    ones, labels = torch.ones(count), torch.arange(count) % 2
    near = Outcomes(
        Threat("linf", (0.1, 0.2), ("pgd", "square")),
        torch.arange(count),
        labels,
        labels,
        ones,
        ones,
        0.1 * ones,
        torch.ones_like(labels),
        0.09 * ones,
    )
    quiet = dict.fromkeys(("probed", "zero", "random", "single", "clamped", "grey", "commonest"), 0)

    def said(epsilon: float, known: Outcomes | None) -> int:
        found = replace(near, threat=Threat("linf", (epsilon,), ("pgd", "square")), broken_at=epsilon * ones)
        return len(warnings(found, (PGD(), Square()), 1, quiet, [0, 0], known=known))

    assert (said(0.2, near), said(0.1, near), said(0.2, None)) == (0, 1, 1)


def test_the_ladder_rises_from_a_250th_of_the_radius_that_makes_all_images_grey() -> None:
    for signature, top in (
        (Signature(1, 28, 28, 10, (0.5,), (0.5,)), 14),
        (Signature(3, 32, 32, 10, (0,), (1,)), 27.7),
    ):
        for norm, largest in (("linf", 0.5), ("l2", top), ("l1", signature.channels * signature.height**2 / 2)):
            rungs = ladder(norm, signature)  # type: ignore[arg-type]
            assert rungs[-1] == pytest.approx(largest, rel=1e-3)
            assert largest / 250 <= rungs[0] <= largest / 150
            assert all(1 < larger / smaller <= 1.5 for smaller, larger in pairwise(rungs))


def test_the_radii_that_people_ask_for_are_rungs() -> None:
    rungs = ladder("linf", digits.DATA.signature())
    assert {k / 20 for k in range(1, 11)} | {0.01, 0.02, 0.03} <= set(rungs)
    assert {0.25, 0.5, 1, 1.5, 2, 3} <= set(ladder("l2", digits.DATA.signature()))
    taken = cell("pgd", 0.2, PGD()).metrics["costs"]
    assert taken["fmn"] == taken["pgd"] == taken["probes"] == 0


def test_there_is_no_ladder_of_counts() -> None:
    with pytest.raises(ValueError, match=r"no ladder in norm l0: .*; allowed: linf, l2, l1"):
        ladder("l0", digits.DATA.signature())


def test_the_scout_is_not_asked_twice() -> None:
    assert survey("pgd", PGD()).metrics["costs"]["fmn"] > 0
    costs = cell("pgd", BETWEEN[1], PGD()).metrics["costs"]
    assert costs["fmn"] == 0 < costs["pgd"]


def test_a_search_for_the_nearest_mistake_is_run_below_the_lowest_rung() -> None:
    """There the survey never ran it: what the scout breaks at the lowest rung, later attacks do not meet."""
    attacks = (scout("l2"), DDN(steps=20))
    survey = on_digits("standard", attacks, 2.0, 4.0, 8.0, descend=True)
    below = on_digits("standard", attacks, 1.0, known=survey)
    single = on_digits("standard", attacks, 1.0)
    assert int((outcomes(survey).broken_at == 2.0).sum()) > COUNT // 2
    assert below.metrics["costs"]["ddn"] > 0
    gap = below.metrics["robust"][0]["accuracy"] - single.metrics["robust"][0]["accuracy"]
    assert abs(gap) <= 0.01, "without the search, five to ten points more would seem to stand"


@pytest.mark.parametrize("net", [standard_net(), robust_net()], ids=["standard", "robust"])
def test_the_first_attack_descends_too_and_each_example_costs_it_one_failure(net: nn.Module) -> None:
    Noting.met.clear()
    rungs = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4)
    found = outcomes(toys(model=net, attacks=(Noting(steps=5),), epsilons=rungs, descend=True))
    met = [radius for batch in Noting.met for radius in batch]
    assert met == sorted(met, reverse=True)
    level = torch.searchsorted(torch.tensor(rungs), found.broken_at)[found.correct]
    expected = [int((level <= place).sum()) + int((level == place + 1).sum()) for place in range(len(rungs))]
    assert [met.count(rung) for rung in rungs] == expected
    assert met.count(0.4) == int(found.correct.sum())


def test_only_the_examples_in_between_are_attacked() -> None:
    whole = outcomes(toys())
    right = whole.correct.nonzero().squeeze(1)
    nearer, farther, standing = right[0::3], right[1::3], right[2::3]
    known = replace(
        whole,
        threat=Threat("linf", (0.05, 0.1, 0.2), ("test-noting",)),
        broken_at=whole.broken_at.index_fill(0, nearer, 0.1)
        .index_fill(0, farther, 0.2)
        .index_fill(0, standing, torch.inf),
        broken_by=torch.zeros_like(whole.broken_by).index_fill(0, standing, -1),
        distances=whole.distances.index_fill(0, nearer, 0.08)
        .index_fill(0, farther, 0.19)
        .index_fill(0, standing, torch.inf),
    )
    step = Finished({"probes": {**toys().metrics["probes"]}}, {FILE: known.to_bytes()})

    def attacked(*epsilons: float) -> tuple[list[float], Outcomes]:
        Noting.met.clear()
        found = outcomes(toys(known=step, attacks=(Noting(steps=5),), epsilons=epsilons))
        return sorted(radius for batch in Noting.met for radius in batch), found

    met, found = attacked(0.09)
    # Those broken nearer are not attacked, nor are those that withstood more; what nothing broke is believed nothing.
    assert met == [0.09] * len(standing)
    assert (found.broken_at[nearer] == torch.tensor(0.09)).all()
    assert (found.distances[nearer] == torch.tensor(0.08)).all()
    assert found.broken_at[farther].isinf().all()
    met, found = attacked(0.07)
    assert met == [0.07] * (len(nearer) + len(standing))
    met, found = attacked(0.05)
    assert met == [0.05] * len(standing)
    met, found = attacked(0.06, 0.09, 0.15, 0.3)
    assert met.count(0.06) == len(nearer) + len(standing)
    assert met.count(0.15) == len(farther) + int((found.broken_at[standing] > 0.1).sum())
    assert (found.broken_at[farther] <= torch.tensor(0.3)).all()


def test_what_nothing_is_known_of_is_evaluated_as_ever() -> None:
    expected = toys(model=standard_net(), epsilons=(0.02, 0.05, 0.1))
    blank = outcomes(toys(model=standard_net(), epsilons=(1e-6,)))
    assert blank.broken_at[blank.correct].isinf().all()
    step = Finished({"probes": expected.metrics["probes"]}, {FILE: blank.to_bytes()})
    found = toys(model=standard_net(), epsilons=(0.02, 0.05, 0.1), known=step)
    assert found.files == expected.files
    changing = ("cost", "costs")
    assert {name: value for name, value in found.metrics.items() if name not in changing} == {
        name: value for name, value in expected.metrics.items() if name not in changing
    }
    assert "descend" not in Evaluate(data=TwoFeatures(), architecture=SmallNet()).identity()


@pytest.mark.parametrize("which", ["survey", "cell", "several"])
def test_it_may_be_interrupted_at_any_block(which: str) -> None:
    attacks = (scout("linf"), PGD(steps=3), FGSM())
    epsilons = {"cell": (0.22,), "several": (0.12, 0.22, 0.27), "survey": ladder("linf", TwoFeatures().signature())}
    fields: dict[str, Any] = {
        "attacks": attacks,
        "epsilons": epsilons[which],
        "descend": which == "survey",
        "batch": 64,
    }
    known = None if which == "survey" else toy_survey(attacks=attacks)
    whole = Stopping()
    expected = toys(whole, known=known, **fields)
    assert len(whole.states) >= 2
    assert whole.reported == sorted(whole.reported)
    for stop_after in range(1, len(whole.states) + 1):
        first = Stopping(stop_after=stop_after)
        with pytest.raises(Interrupted):
            toys(first, known=known, **fields)
        torch.rand(3)  # whatever else the process did meanwhile
        resumed = Stopping(first.states[-1])
        result = toys(resumed, known=known, **fields)
        assert (result.metrics, result.files) == (expected.metrics, expected.files)
        assert len(resumed.states) - 1 == len(whole.states) - stop_after


def test_shards_of_a_cell_start_from_shards_of_the_survey() -> None:
    attacks = (scout("linf"), PGD(steps=3), FGSM())
    whole = toys(known=toy_survey(attacks=attacks), attacks=attacks, epsilons=(0.22,))
    shards = []
    for first in range(0, 300, 110):
        part: dict[str, Any] = {"attacks": attacks, "first": first, "count": 110}
        shards.append(outcomes(toys(known=toy_survey(**part), epsilons=(0.22,), **part)))
    assert Outcomes.joined(shards).to_bytes() == whole.files[FILE]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"examples": 100}, "known: holds 300 other examples than the 100 that are measured here"),
        ({"examples": 300, "first": 10}, "known: holds 300 other examples than the 290"),
        ({"attacks": (PGD(steps=5),)}, "known: attacked with fgsm, pgd, but here it is pgd$"),
        ({"attacks": (FGSM(norm="l2"), PGD(norm="l2"))}, "known: attacked in norm linf, but here it is l2"),
        ({"attacks": (), "epsilons": ()}, "known: attacked with fgsm, pgd, but here it is nothing"),
        ({"model": standard_net()}, "known: is about another network: its losses differ on .* of the first 128"),
    ],
    ids=["fewer", "stretch", "attacks", "norm", "none", "network"],
)
def test_what_does_not_fit_is_refused_in_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toys(known=toys(epsilons=(0.05, 0.2)), **fields)


@pytest.mark.parametrize("name", ["trained", "known"])
def test_a_surrogate_does_not_take_the_name_of_another_input(name: str) -> None:
    with pytest.raises(ValidationError, match=f"no surrogate can be called '{name}'"):
        Evaluate(data=TwoFeatures(), architecture=SmallNet(), surrogates={name: SmallNet()})
