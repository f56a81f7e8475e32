"""Budgets: exact radii, what they learn from, each image in its own ball, trainings that resume to the same bytes."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from tasks.attacks.ball import ball
from tasks.budgets import Budget
from tasks.budgets.adaptive import Adaptive
from tasks.budgets.curriculum import Curriculum
from tasks.budgets.fixed import Fixed
from tasks.budgets.per_example import PerExample
from tasks.budgets.ramp import Ramp
from tasks.component import kind_of, members
from tasks.moment import Moment
from tasks.objectives import Objective
from tasks.objectives.adversarial import Adversarial
from tasks.objectives.fgsm_rs import FGSMRS
from tasks.objectives.pgd import PGD
from tasks.objectives.trades import TRADES
from tasks.seeds import generator
from tests.tasks.attack_toys import SmallNet, TwoFeatures, pixels
from tests.tasks.training_toys import Watch, half_mask, resumed, toy, trained

pytestmark = pytest.mark.usefixtures("one_thread")

NEW: list[Budget] = [Ramp(), Curriculum(), Adaptive(), PerExample()]
REMEMBERING: list[Budget] = [Adaptive(eta=50, rate=0.5), PerExample(first=0.3, growth=0.4, shrinkage=0.2)]
"""Those with a memory, quick enough for it to matter within the 18 steps of the toy."""
QUICK: list[Budget] = [Ramp(), Curriculum(), *REMEMBERING]
FAMILIES: list[type[Adversarial]] = [PGD, TRADES, FGSMRS]
ONE_STEP: list[Adversarial] = [PGD(epsilon=0.3, steps=1), TRADES(epsilon=0.3, steps=1), FGSMRS(epsilon=0.3)]
IN_NORMS = [(family, norm) for family in FAMILIES for norm in family.norms]


def kind(value: Any) -> str:
    return value if isinstance(value, str) else kind_of(value if isinstance(value, type) else type(value))


def at(step: int, steps: int, rows: torch.Tensor | None = None) -> Moment:
    return Moment(generator("budgets", step), step, steps, rows)


def schedule(budget: Budget, epsilon: float, steps: int) -> list[float]:
    """The radius of every step of a training, where it is one for all images."""
    memory = budget.memory(10)
    return [float(budget.radii(epsilon, 1, at(step, steps), memory)) for step in range(steps)]


def answers(right: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits (N, 4) that pick the label where `right`, and the next class elsewhere."""
    return F.one_hot(torch.where(right, labels, (labels + 1) % 4), 4).float()


def test_the_family_has_its_members():
    assert set(members(Budget)) >= {"fixed", "ramp", "curriculum", "adaptive", "per-example"}


# --- ramp and curriculum: radii by the step ---


def test_a_ramp_rises_in_a_line_from_nothing_and_then_stays():
    radii = schedule(Ramp(over=0.5), 0.4, 20)
    assert radii == pytest.approx([0.04 * step for step in range(10)] + [0.4] * 10)
    assert radii[0] == 0
    assert radii[10:] == [0.4] * 10


def test_a_ramp_starts_where_it_is_told():
    radii = schedule(Ramp(first=0.25), 0.4, 10)
    assert radii == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.4, 0.4, 0.4])
    assert radii[0] == 0.1


def test_a_ramp_over_the_whole_training_ends_one_step_short():
    assert schedule(Ramp(over=1), 0.4, 8)[-1] == pytest.approx(0.35)


def test_a_curriculum_climbs_equal_stages_of_equal_length():
    radii = schedule(Curriculum(stages=4, over=0.8), 0.4, 20)
    assert radii == pytest.approx([0.1] * 4 + [0.2] * 4 + [0.3] * 4 + [0.4] * 8)
    assert radii[-1] == 0.4


def test_the_stages_of_a_curriculum_begin_at_the_very_step():
    radii = schedule(Curriculum(), 1.0, 10_000)  # five stages over 0.6: 0.6 / 5 is no binary fraction
    changes = [step for step in range(1, 10_000) if radii[step] != radii[step - 1]]
    assert changes == [1200, 2400, 3600, 4800]


def test_a_curriculum_shorter_than_its_stages_skips_some_and_ends_at_the_top():
    assert schedule(Curriculum(stages=10, over=1), 1.0, 3) == pytest.approx([0.1, 0.4, 0.7])
    assert schedule(Curriculum(stages=10, over=0.3), 1.0, 3) == pytest.approx([0.1, 1.0, 1.0])


@pytest.mark.parametrize("epsilon", [0.1, 8 / 255, 0.3, 3.7])
@pytest.mark.parametrize(
    "budget", [Fixed(), Ramp(), Ramp(first=0.1, over=0.7), Curriculum(), Curriculum(stages=7, over=0.9)], ids=str
)
def test_no_schedule_falls_or_exceeds_its_largest_radius(budget: Budget, epsilon: float):
    radii = schedule(budget, epsilon, 391)
    assert radii == sorted(radii)
    assert radii[-1] == epsilon


def test_a_single_stage_and_a_ramp_from_the_top_are_the_fixed_budget_bit_for_bit():
    fixed = trained(toy(objective=PGD(epsilon=0.2, steps=2))).metrics["digest"]
    for budget in (Curriculum(stages=1), Ramp(first=1)):
        assert trained(toy(objective=PGD(epsilon=0.2, steps=2, budget=budget))).metrics["digest"] == fixed
    assert trained(toy(objective=PGD(epsilon=0.2, steps=2, budget=Ramp()))).metrics["digest"] != fixed


# --- adaptive: draws by the losses ---


def drawn(budget: Adaptive, losses: list[float], count: int, purpose: str = "draws") -> torch.Tensor:
    """How often each level is drawn, given these averages."""
    memory = budget.memory(1)
    memory.get_buffer("losses").copy_(torch.tensor(losses))
    moment = Moment(generator(purpose))
    levels = torch.stack([budget.radii(1.0, 1, moment, memory)[0] for _ in range(count)]) * budget.levels - 1
    return torch.bincount(levels.round().long(), minlength=budget.levels) / count


def test_levels_are_drawn_as_often_as_their_losses_say():
    found = drawn(Adaptive(levels=4, eta=2.0), [0.0, 0.5, 1.0, 0.5], 8000)
    expected = torch.tensor([1.0, 2.718282, 7.389056, 2.718282]) / 13.82562  # exp(2 * loss), summing to 1
    assert (found - expected).abs().max() < 4 * (0.25 / 8000) ** 0.5


def test_without_eta_all_levels_are_drawn_equally_often():
    assert (drawn(Adaptive(eta=0), [0.0, 5.0, 0.0, 0.0], 8000) - 0.25).abs().max() < 4 * (0.1875 / 8000) ** 0.5


def test_large_losses_do_not_overflow():
    assert drawn(Adaptive(levels=2, eta=50), [1e4, 1e4 + 1], 50).tolist() == [0, 1]


def test_the_draw_comes_from_the_generator_of_the_moment_alone():
    budget = Adaptive()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        before = torch.random.get_rng_state()
        first = drawn(budget, [0.0] * 4, 50)
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(2)
        assert torch.equal(drawn(budget, [0.0] * 4, 50), first)
    assert not torch.equal(drawn(budget, [0.0] * 4, 50, "other draws"), first)


def test_a_batch_shares_one_level_of_equal_parts():
    budget = Adaptive(levels=5)
    memory, moment = budget.memory(1), Moment(generator("levels"))
    found = [budget.radii(0.3, 7, moment, memory) for _ in range(100)]
    assert all(radii.shape == (7,) and (radii == radii[0]).all() for radii in found)
    assert sorted({round(float(radii[0]), 6) for radii in found}) == [0.06, 0.12, 0.18, 0.24, 0.3]
    assert max(float(radii[0]) for radii in found) == float(torch.tensor(0.3))


def test_the_average_of_the_drawn_level_follows_the_cross_entropy_and_no_other_does():
    budget = Adaptive(levels=3, rate=0.25)
    memory = budget.memory(1)
    losses, level = memory.get_buffer("losses"), memory.get_buffer("level")
    labels = torch.tensor([0, 1, 2, 3, 0])
    uncertain = torch.zeros(5, 4)  # cross-entropy log 4
    sure = 20 * F.one_hot(labels, 4).float()  # cross-entropy nearly 0
    level.fill_(1)
    budget.learn(uncertain, labels, Moment(generator(0)), memory)
    assert losses.tolist() == pytest.approx([1.386294] * 3)  # the first loss stands for all
    budget.learn(sure, labels, Moment(generator(0)), memory)
    assert losses.tolist() == pytest.approx([1.386294, 0.75 * 1.386294, 1.386294])
    level.fill_(2)
    budget.learn(sure, labels, Moment(generator(0)), memory)
    budget.learn(sure, labels, Moment(generator(0)), memory)
    assert losses.tolist() == pytest.approx([1.386294, 0.75 * 1.386294, 0.5625 * 1.386294])


def test_what_is_learnt_goes_to_the_level_that_was_drawn():
    budget = Adaptive(levels=4, rate=1, eta=0)
    memory, labels = budget.memory(1), torch.zeros(3, dtype=torch.int64)
    budget.learn(torch.zeros(3, 4), labels, Moment(generator(0)), memory)
    for seed in range(1, 21):
        before = memory.get_buffer("losses").clone()
        moment = Moment(generator(seed))
        place = round(4 * float(budget.radii(1.0, 3, moment, memory)[0])) - 1
        budget.learn(float(seed) * F.one_hot(labels + 1, 4), labels, moment, memory)
        assert (memory.get_buffer("losses") != before).nonzero().flatten().tolist() == [place]


# --- per-example: a radius by the row ---


def visit(
    budget: PerExample, memory: nn.Module, rows: list[int], right: list[bool], epsilon: float = 0.3
) -> list[float]:
    """One step on these rows: the radii that were given out."""
    moment = at(0, 1, torch.tensor(rows))
    radii = budget.radii(epsilon, len(rows), moment, memory)
    assert isinstance(radii, torch.Tensor)
    labels = torch.tensor(rows) % 4
    budget.learn(answers(torch.tensor(right), labels), labels, moment, memory)
    return radii.tolist()


def test_who_always_withstands_grows_to_the_largest_radius_and_never_above():
    budget = PerExample(first=0.1, growth=0.3)
    memory = budget.memory(3)
    radii = [visit(budget, memory, [1], [True])[0] for _ in range(6)]
    assert radii == pytest.approx([0.03, 0.12, 0.21, 0.3, 0.3, 0.3])
    assert max(radii) == float(torch.tensor(0.3))


def test_who_always_falls_shrinks_to_the_floor_and_never_below():
    budget = PerExample(first=0.5, shrinkage=0.2, floor=0.1)
    memory = budget.memory(3)
    assert [visit(budget, memory, [2], [False])[0] for _ in range(4)] == pytest.approx([0.15, 0.09, 0.03, 0.03])
    budget = PerExample(first=0.15)
    memory = budget.memory(3)
    assert [visit(budget, memory, [2], [False])[0] for _ in range(4)] == pytest.approx([0.045, 0.015, 0, 0])


def test_neighbours_are_untouched_and_remembered_by_their_rows():
    budget = PerExample(first=0.5, growth=0.25, shrinkage=0.125)
    memory = budget.memory(6)
    visit(budget, memory, [4, 0, 3], [True, False, True])
    assert memory.get_buffer("shares").tolist() == [0.375, 0.5, 0.5, 0.75, 0.75, 0.5]
    visit(budget, memory, [5], [False])  # a short last batch
    assert memory.get_buffer("shares").tolist() == [0.375, 0.5, 0.5, 0.75, 0.75, 0.375]
    assert visit(budget, memory, [0, 5, 4], [True, True, True], epsilon=1.0) == [0.375, 0.375, 0.75]  # the next epoch
    assert memory.get_buffer("shares").tolist() == [0.625, 0.5, 0.5, 0.75, 1.0, 0.625]


def test_a_training_moves_every_radius_once_an_epoch(monkeypatch: pytest.MonkeyPatch):
    given: list[dict[int, float]] = []
    plain = PerExample.radii

    def watched(self: PerExample, epsilon: float, count: int, moment: Moment, memory: nn.Module) -> torch.Tensor:
        radii = plain(self, epsilon, count, moment, memory)
        assert moment.rows is not None
        assert len(radii) == count == len(moment.rows)
        given.append(dict(zip(moment.rows.tolist(), radii.tolist(), strict=True)))
        return radii

    monkeypatch.setattr(PerExample, "radii", watched)
    trained(toy(objective=PGD(epsilon=0.5, steps=1, budget=PerExample(first=0.5, growth=0.25, shrinkage=0.125))))
    epochs = [dict(chain.from_iterable(step.items() for step in given[first : first + 6])) for first in (0, 6, 12)]
    assert all(sorted(epoch) == list(range(44)) for epoch in epochs)
    assert set(epochs[0].values()) == {0.25}
    assert {epochs[n + 1][row] - epochs[n][row] for n in (0, 1) for row in range(44)} == {0.125, -0.0625}


# --- every objective ---


def attacked(count: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network in training mode, images and their labels."""
    images, labels = pixels()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SmallNet().build(TwoFeatures().signature()), images[:count], labels[:count]


@pytest.mark.parametrize(("family", "norm"), IN_NORMS, ids=kind)
def test_every_image_stays_in_its_own_ball(family: type[Adversarial], norm: Any):
    model, images, labels = attacked(40)
    largest = 0.2 if norm == "linf" else 1.0
    radii = torch.linspace(0, largest, 40)
    objective = family(epsilon=largest, norm=norm)
    perturbed = objective.perturb(model, images, labels, radii, Moment(generator(0)))
    within = ball(norm, images, radii)
    assert within.contains(perturbed).all()
    assert torch.equal(perturbed[0], images[0])
    reached = within.distances(perturbed)[1:] / radii[1:]
    assert reached.median() > 0.9, "an attack that hardly moves stays in any ball"


@pytest.mark.parametrize(("family", "norm"), IN_NORMS, ids=kind)
def test_equal_radii_of_each_are_the_radius_of_all(family: type[Adversarial], norm: Any):
    model, images, labels = attacked(20)
    objective = family(epsilon=0.25, norm=norm)
    one, each = (
        objective.perturb(model, images, labels, radius, Moment(generator(0)))
        for radius in (0.25, torch.full((20,), 0.25))
    )
    assert (one - each).abs().max() < 1e-4


@pytest.mark.parametrize(("family", "norm"), IN_NORMS, ids=kind)
@pytest.mark.parametrize("radius", [0.0, torch.zeros(16)], ids=["one", "each"])
def test_a_radius_of_zero_leaves_images_as_they_are(radius: float | torch.Tensor, family: type[Adversarial], norm: Any):
    model, images, labels = attacked(16)
    objective = family(epsilon=0.1, norm=norm)
    moment = Moment(generator(0))
    perturbed = objective.perturb(model, images, labels, radius, moment)
    assert torch.equal(perturbed, images)
    loss = objective.outer(model, images, perturbed, labels, moment).loss
    assert torch.allclose(loss, F.cross_entropy(model(images), labels), atol=1e-6)


@pytest.mark.parametrize("budget", QUICK, ids=kind)
def test_every_objective_that_attacks_trains_under_every_budget(budget: Budget):
    for family in members(Objective).values():
        if issubclass(family, Adversarial):
            task = toy(objective=family(epsilon=0.3, budget=budget), epochs=2)
            assert task.run(Watch()).metrics["step"] == 12, f"{kind(family)} ended early"


@pytest.mark.parametrize("budget", QUICK, ids=kind)
@pytest.mark.parametrize("objective", ONE_STEP, ids=kind)
def test_budgets_resume_to_the_same_bytes_from_every_batch(objective: Adversarial, budget: Budget):
    task = toy(objective=objective.model_copy(update={"budget": budget}))
    straight = task.run(Watch())
    for saves in range(1, 19):
        assert resumed(task, [saves], {}) == straight, f"interrupted after step {saves}"


@pytest.mark.parametrize("budget", QUICK, ids=kind)
@pytest.mark.parametrize("objective", ONE_STEP, ids=kind)
def test_budgets_resume_under_a_mask(objective: Adversarial, budget: Budget):
    task = toy(objective=objective.model_copy(update={"budget": budget}))
    inputs = {"mask": half_mask(trained(toy(stop_at=0)))}
    straight = task.run(Watch(), **inputs)
    assert straight.metrics["density"] < 1
    for interruptions in ([1], [7], [3, 5, 9]):
        assert resumed(task, interruptions, inputs) == straight, f"interrupted after {interruptions}"


@pytest.mark.parametrize("budget", REMEMBERING, ids=kind)
def test_a_checkpoint_without_the_memory_would_not_do(budget: Budget, monkeypatch: pytest.MonkeyPatch):
    task = toy(objective=PGD(epsilon=0.3, steps=2, budget=budget))
    straight = task.run(Watch())
    monkeypatch.setattr(nn.Module, "state_dict", _without_memory(nn.Module.state_dict))
    monkeypatch.setattr(nn.Module, "load_state_dict", _tolerant(nn.Module.load_state_dict))
    assert any(resumed(task, [saves], {}) != straight for saves in (4, 9, 14))


def _without_memory(plain: Any) -> Any:
    def state_dict(self: nn.Module, *args: Any, **named: Any) -> Any:
        return {} if hasattr(self, "budget") else plain(self, *args, **named)

    return state_dict


def _tolerant(plain: Any) -> Any:
    def load_state_dict(self: nn.Module, state: Any, *args: Any, **named: Any) -> Any:
        return plain(self, state, *args, **{**named, "strict": False})

    return load_state_dict


def test_half_precision_trains_with_every_budget():
    for budget in QUICK:
        straight = toy(objective=PGD(epsilon=0.3, steps=2, budget=budget), precision="bf16").run(Watch())
        assert straight.metrics["step"] == 18


# --- what is allowed ---


@pytest.mark.parametrize(
    ("budget", "found"),
    [
        ({"kind": "ramp", "first": -0.1}, "first"),
        ({"kind": "ramp", "first": 1.1}, "first"),
        ({"kind": "ramp", "over": 0}, "over"),
        ({"kind": "ramp", "over": 1.1}, "over"),
        ({"kind": "curriculum", "stages": 0}, "stages"),
        ({"kind": "curriculum", "over": 0}, "over"),
        ({"kind": "adaptive", "levels": 0}, "levels"),
        ({"kind": "adaptive", "eta": -1}, "eta"),
        ({"kind": "adaptive", "rate": 0}, "rate"),
        ({"kind": "adaptive", "rate": 1.5}, "rate"),
        ({"kind": "per-example", "first": 2}, "first"),
        ({"kind": "per-example", "growth": 0}, "growth"),
        ({"kind": "per-example", "shrinkage": -0.1}, "shrinkage"),
        ({"kind": "per-example", "floor": 1.1}, "floor"),
        ({"kind": "per-example", "first": 0.1, "floor": 0.2}, "first is 0.1, below floor, which is 0.2"),
        ({"kind": "adaptive", "level": 3}, "did you mean 'levels'"),
    ],
    ids=str,
)
def test_values_out_of_bounds_do_not_validate(budget: dict[str, Any], found: str):
    with pytest.raises(ValidationError, match=found) as caught:
        PGD.model_validate({"epsilon": 0.1, "budget": budget})
    assert caught.value.error_count() == 1


@pytest.mark.parametrize("budget", NEW, ids=kind)
def test_the_budget_is_part_of_what_a_training_is(budget: Budget):
    plain, budgeted = PGD(epsilon=0.1).identity(), PGD(epsilon=0.1, budget=budget).identity()
    assert "budget" not in plain
    assert budgeted == {**plain, "budget": {"kind": kind(budget)}}
