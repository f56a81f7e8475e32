"""The graph that iterative magnitude pruning asks for, read off its plan."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.flow import Handle
from cluster.plan import make_plan
from cluster.store import Store
from workflows.imp import IMP
from workflows.measured import seeded

CHAIN: dict[str, Any] = {
    "train": {
        "data": {"kind": "mnist-mini", "subset": 500},
        "architecture": "lenet-300-100",
        "optimizer": {"kind": "sgd", "learning_rate": 0.1, "momentum": 0.9},
        "schedule": "cosine",
        "epochs": 4,
    },
    "prune": {"fraction": 0.5},
    "levels": 2,
}


def trainings(**fields: Any) -> dict[tuple[Any, ...], Handle]:
    """The trainings of one chain by level and control."""
    workflow = IMP.model_validate({**CHAIN, **fields})
    workflow.check()
    plan = asyncio.run(make_plan(Store.open("memory://"), workflow.run))
    steps = [step.handle for step in plan.steps if step.handle.task.kind == "train"]
    return {(step.at.get("level"), step.at.get("control")): step for step in steps}


def test_rewinding_restarts_every_level_from_the_same_point_with_the_schedule_going_on() -> None:
    found = trainings(rewind_step=3, controls=["reinit", "shuffled"])
    point = found[None, None]
    assert point.task.identity()["stop_at"] == 3
    for level in range(3):
        assert found[level, None].inputs["start"] is point
        assert found[level, None].task == found[0, None].task
    assert "start" not in found[1, "reinit"].inputs
    assert found[1, "reinit"].inputs["mask"] is found[1, None].inputs["mask"]
    assert found[1, "shuffled"].inputs["start"] is point
    assert found[1, "shuffled"].inputs["mask"].inputs["mask"] is found[1, None].inputs["mask"]


def test_learning_rate_rewinding_keeps_the_weights_and_restarts_the_whole_schedule() -> None:
    found = trainings(retraining="learning-rate-rewind", controls=[])
    assert found[1, None].inputs["start"] is found[0, None]
    assert found[2, None].inputs["start"] is found[1, None]
    assert found[2, None].task == found[0, None].task.model_copy(update={"schedule_from": "zero"})


def test_fine_tuning_keeps_the_weights_and_goes_on_at_a_small_constant_rate() -> None:
    found = trainings(retraining="fine-tune", fine_tune_epochs=2, fine_tune_rate=0.001, controls=["reinit"])
    assert found[1, None].inputs["start"] is found[0, None]
    tuned = found[1, None].task.identity()
    assert (tuned["epochs"], tuned["schedule_from"]) == (2, "zero")
    assert tuned["optimizer"] == {"kind": "sgd", "learning_rate": 0.001, "momentum": 0.9}
    assert "schedule" not in tuned
    assert found[1, "reinit"].task.identity()["epochs"] == 4, "the control gets the whole training"


@pytest.mark.parametrize(
    "fields", [{"retraining": "fine-tune"}, {"retraining": "fine-tune", "fine_tune_epochs": 2}, {"fine_tune_rate": 0.1}]
)
def test_half_a_fine_tuning_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="go together"):
        IMP.model_validate({**CHAIN, **fields})


def test_replicates_differ_in_their_seeds_alone() -> None:
    workflow = IMP.model_validate({**CHAIN, "replicates": 3})
    seeds = [(seeded(workflow.train, index).seed, seeded(workflow.train, index).init_seed) for index in range(3)]
    assert len(set(seeds)) == 3
    assert seeded(workflow.train, 2).model_copy(update={"seed": 0, "init_seed": 0}) == workflow.train
