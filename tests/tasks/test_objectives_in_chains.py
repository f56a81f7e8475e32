"""Every objective and every budget in a pruning chain: killed anywhere, it ends in the same bytes; each is one file."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest
import torch
from torch import nn

import tasks
from tasks.attacks.pgd import PGD as Attack  # noqa: N811 - its objective has the same name
from tasks.budgets import Budget
from tasks.component import Component, members
from tasks.data import Signature
from tasks.models.weights import load_weights
from tasks.moment import Moment
from tasks.objectives import Objective
from tasks.objectives.pgd import PGD
from tasks.objectives.standard import Standard
from tasks.optimizers.sgd import SGD
from tasks.pruning.mask import Mask
from tasks.pruning.prune import Prune
from tasks.training.guard import Guard
from tasks.training.robust_validation import RobustValidation
from tasks.training.train import Train
from tests.tasks.training_toys import Finished, Tiny, Watch, resumed, toy, trained

pytestmark = pytest.mark.usefixtures("one_thread")

ROOM = Path(tasks.__file__).parent
REWIND_STEP, LEVELS = 4, 2
ATTACKED = PGD(epsilon=0.1, steps=2)

FIELDS: dict[str, dict[str, Any]] = {
    "awp": {"objective": ATTACKED, "gamma": 0.02, "warmup": 0.5},
    "distilled": {"objective": ATTACKED, "temperature": 2},
    "fgsm": {"epsilon": 0.1},
    "fgsm-rs": {"epsilon": 0.1},
    "free": {"epsilon": 0.1, "replay": 4},
    "grad-align": {"epsilon": 0.1},
    "half-clean": {"epsilon": 0.1, "steps": 2},
    "interpolated": {"epsilon": 0.1, "steps": 2},
    "mart": {"epsilon": 0.1, "steps": 2},
    "pgd": dict(ATTACKED),
    "standard": {"label_smoothing": 0.1},
    "trades": {"epsilon": 0.1, "steps": 2},
    # Budgets: quick enough to matter within the 18 steps of the toy.
    "adaptive": {"eta": 50, "rate": 0.5},
    "curriculum": {},
    "fixed": {},
    "per-example": {"first": 0.3, "growth": 0.4, "shrinkage": 0.2},
    "ramp": {},
}
"""What each is built with here; a new objective or budget needs an entry."""


def shipped(family: type[Component]) -> dict[str, type[Any]]:
    """The members of a family that are no toys of a test."""
    return {kind: member for kind, member in members(family).items() if member.__module__.startswith("tasks.")}


def objective_of(kind: str) -> Objective:
    objective: Objective = shipped(Objective)[kind](**FIELDS[kind])
    return objective


def under(objective: Objective, watched: bool = False) -> Train:
    """A training of 18 steps with all that has a state: batch statistics, dropout, momentum kept from the rewind point.

    Where it is watched, what it withstands is measured every epoch and every four steps, by a guard so timid that some
    chains go back.
    """
    fields: dict[str, Any] = {}
    if watched:
        assert objective.threat is not None
        attack = Attack(steps=2, norm=objective.threat[0])
        fields = {
            "robust_validation": RobustValidation(attack=attack, examples=16),
            "guard": Guard(attack=attack, every=4, drop=0.1, examples=16),
        }
    optimizer = SGD(learning_rate=0.05, momentum=0.9, weight_decay=1e-3)
    architecture = Tiny(norm=True, dropout=0.25)
    return toy(objective=objective, architecture=architecture, optimizer=optimizer, rewind_optimizer=True, **fields)


def chain(task: Train, run: Callable[..., Finished]) -> dict[str, Finished]:
    """A dense training to the rewind point, and from there the dense network and two sparser ones."""
    more = {"teacher": teacher()} if task.objective.taught else {}
    rewind = run("rewind", task.model_copy(update={"stop_at": REWIND_STEP}), **more)
    steps, mask = {"rewind": rewind}, {}
    for level in range(LEVELS + 1):
        ticket = steps[f"level {level}"] = run(f"level {level}", task, start=rewind, **mask, **more)
        if level < LEVELS:
            result = Prune(fraction=0.5).run(Watch(), trained=ticket, **mask)
            mask = {"mask": Finished(result.metrics, result.files)}
            steps[f"mask {level + 1}"] = mask["mask"]
    return steps


@cache
def teacher() -> Finished:
    return trained(toy(architecture=Tiny(norm=True, dropout=0.25), init_seed=7))


@cache
def undisturbed(task: Train) -> Mapping[str, Finished]:
    return chain(task, lambda _, training, **inputs: trained(training, **inputs))


def disturbed(task: Train, seed: int) -> dict[str, Finished]:
    """The chain whose trainings are all interrupted once, at a step drawn by the seed, and go on in other hands."""
    random = Random(seed)

    def run(name: str, training: Train, **inputs: Finished) -> Finished:
        ends = undisturbed(task)[name].metrics
        begin = inputs["start"].metrics["step"] if "start" in inputs else 0
        last = ends["stopped"]["detected_at"] if "stopped" in ends else ends["step"]
        result = resumed(training, [random.randint(1, last - begin)], inputs)
        return Finished(result.metrics, result.files)

    return chain(task, run)


def contents(steps: Mapping[str, Finished]) -> dict[str, Any]:
    """Metrics and file digests of every step."""
    return {
        name: (step.metrics, {file: hashlib.sha256(content).hexdigest() for file, content in step.files.items()})
        for name, step in steps.items()
    }


def require_survival(task: Train, seed: int) -> None:
    assert contents(disturbed(task, seed)) == contents(undisturbed(task))


def test_every_objective_and_budget_has_an_entry_here():
    assert sorted(FIELDS) == sorted([*shipped(Objective), *shipped(Budget)])


@pytest.mark.parametrize("kind", shipped(Objective))
def test_every_objective_resumes_in_a_chain_to_the_same_bytes(kind: str):
    require_survival(under(objective_of(kind)), seed=1)


@pytest.mark.parametrize("kind", [kind for kind in shipped(Objective) if objective_of(kind).threat])
def test_every_objective_that_attacks_resumes_with_guard_and_robust_validation(kind: str):
    task = under(objective_of(kind), watched=True)
    assert undisturbed(task)["level 2"].metrics["selection_steps"] > 0
    require_survival(task, seed=2)


@pytest.mark.parametrize("kind", shipped(Budget))
@pytest.mark.parametrize("around", ["pgd", "awp"])
def test_every_budget_resumes_in_a_chain_to_the_same_bytes(around: str, kind: str):
    attacked = ATTACKED.model_copy(update={"budget": shipped(Budget)[kind](**FIELDS[kind])})
    objective = attacked if around == "pgd" else objective_of("awp").model_copy(update={"objective": attacked})
    require_survival(under(objective, watched=around == "awp"), seed=3)


@pytest.mark.parametrize("kind", shipped(Objective))
def test_every_objective_trains_under_the_mask_and_revives_nothing(kind: str):
    steps = undisturbed(under(objective_of(kind)))
    for level in range(1, LEVELS + 1):
        ticket, mask = steps[f"level {level}"], Mask.from_bytes(steps[f"mask {level}"].read("mask.safetensors"))
        assert mask.density == pytest.approx(0.5**level, abs=0.01)
        assert ticket.metrics["density"] == mask.density
        assert Mask.from_bytes(ticket.read("mask.safetensors")) == mask
        for file in ("weights.safetensors", "best.safetensors"):
            mask.audit_weights(load_weights(ticket.read(file)).kernels())


@pytest.mark.parametrize("kind", shipped(Objective))
def test_what_an_objective_remembers_is_part_of_the_rewind_point(kind: str):
    task = under(objective_of(kind))
    remembers = bool(task.objective.memory(task.data.signature(), 44, task.batch_size).state_dict())
    assert ("memory.safetensors" in undisturbed(task)["rewind"].files) == remembers


def test_every_objective_finds_a_network_of_its_own():
    digests = {kind: undisturbed(under(objective_of(kind)))["level 2"].metrics["digest"] for kind in shipped(Objective)}
    assert len(set(digests.values())) == len(digests), digests


class Forgetful(Objective):
    """Remembers the last loss, but not in a buffer."""

    kind: Literal["toy-forgetful"] = "toy-forgetful"

    def memory(self, data: Signature, examples: int, batch: int) -> nn.Module:
        memory = nn.Module()
        memory.last = torch.zeros(())
        return memory

    def loss(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, moment: Moment) -> torch.Tensor:
        loss = (1 + moment.memory.last) * Standard().loss(model, images, labels, moment)
        moment.memory.last = loss.detach() / 10
        return loss


def test_what_is_compared_can_differ():
    task = under(Forgetful())
    lost, whole = (steps["level 2"].metrics["digest"] for steps in (disturbed(task, seed=1), undisturbed(task)))
    assert lost != whole


@pytest.mark.parametrize("family", [Objective, Budget], ids=["objectives", "budgets"])
def test_each_is_one_file_named_for_its_kind(family: type[Component]):
    """The folder is where they are, and nobody else has to know them: only the defaults are named elsewhere."""
    modules = {kind: member.__module__ for kind, member in shipped(family).items()}
    assert modules == {kind: f"{family.__module__}.{kind.replace('-', '_')}" for kind in modules}
    imported = {
        node.module
        for room in ("cluster", "search_spaces", "tasks", "workflows")
        for path in (ROOM.parent / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module
    }
    defaults = {Objective: "tasks.objectives.standard", Budget: "tasks.budgets.fixed"}
    built_upon = {"tasks.objectives.distilled"}  # Deadwooding is pruning with this objective
    assert (set(modules.values()) & imported) - built_upon == {defaults[family]}
