"""Sparse double descent: pruning first aggravates the memorising of false labels, and then undoes it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.flow import Handle
from cluster.plan import make_plan
from cluster.runs import finished_steps
from cluster.store import Store
from tests.workflows.conftest import SMALL, drive, write_recipe
from workflows.command.recipe import load_recipe
from workflows.imp import IMP
from workflows.report import Report

MNIST = os.environ.get("HEDGEROW_DATA")  # now, because the fixtures of this folder take it out of the environment


def planned(**fields: Any) -> list[Handle]:
    """The steps of the small recipe."""
    workflow = IMP.model_validate({**SMALL, "levels": 2, **fields})
    plan = asyncio.run(make_plan(Store.open("memory://"), workflow.run))
    return [step.handle for step in plan.steps]


def reported(folder: Path, name: str | dict[str, Any], *overrides: str) -> Report:
    """What the finished workflow reports."""
    store = Store.open(str(folder / "store"))
    recipe = load_recipe(name if isinstance(name, str) else str(write_recipe(folder, name)), overrides)
    run, code = drive(store, recipe, folder / "out")
    assert code == 0
    return recipe.workflow.report(finished_steps(store, run.id))


@pytest.mark.parametrize("rewind_step", [0, 3])
def test_the_distance_of_every_ticket_is_measured_from_the_one_rewind_point(rewind_step: int) -> None:
    steps = planned(distance=True, rewind_step=rewind_step)
    described = [step for step in steps if step.task.kind == "ticket"]
    assert [step.at["level"] for step in described] == [0, 1, 2]
    (origin,) = {step.inputs["origin"] for step in described}
    assert origin.task.identity()["stop_at"] == rewind_step
    assert {step.inputs["trained"].inputs.get("start") for step in described} == {origin if rewind_step else None}


def test_without_it_no_step_is_asked_for() -> None:
    plain, measured = ({step.key for step in planned(distance=wanted)} for wanted in (False, True))
    assert plain < measured
    assert len(measured - plain) == 4, "three tickets and what they began with"


def test_distances_stand_beside_accuracies(tmp_path: Path) -> None:
    report = reported(tmp_path, {**SMALL, "distance": True, "controls": []})
    assert report.columns[-1] == "distance moved"
    dense, sparse = report.results
    assert 0 < sparse["distance"] < dense["distance"]
    assert [row[-1] for row in report.rows] == [f"{point['distance']:.1f}" for point in (dense, sparse)]
    points = dict(report.curves[-1].points)
    assert points == {100.0: 100.0, 100 * sparse["density"]: 100 * sparse["distance"] / dense["distance"]}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not MNIST, reason="needs HEDGEROW_DATA, a folder with MNIST")
def test_false_labels_are_memorised_most_at_a_twentieth_of_the_weights_and_then_forgotten(tmp_path: Path) -> None:
    """He et al. 2022, Fig. 1 and 5, on 4,000 digits of MNIST with 40 % false labels: 11 levels of 40 %.

    Measured, test accuracy in percent and distance from the initial weights, at 100, 22, 7.9, 4.7, 1.1 and 0.4 %:

    - false labels: 68.2, 66.0, 62.0, 59.2, 74.7, 79.5; 27.4, 15.7, 19.1, 20.6, 15.4, 12.7;
    - clean labels: 94.6, 94.6, 94.6, 94.6, 93.6, 91.2; 9.9, 7.8, 9.6, 11.2, 17.6, 17.7.
    """
    reduced = [f"train.data.root={MNIST}", "prune.fraction=0.4", "levels=11"]
    noisy = reported(tmp_path, "double-descent", *reduced).results
    clean = reported(tmp_path, "double-descent", *reduced, "train.data.label_noise=0").results

    def found(points: Sequence[Mapping[str, Any]], low: float, high: float, name: str = "clean") -> list[float]:
        return [point[name] for point in points if low <= point["density"] <= high]

    dip = min(found(noisy, 0.03, 0.15))
    assert min(found(noisy, 0.2, 0.5)) - dip >= 0.03
    assert max(found(noisy, 0.003, 0.02)) - dip >= 0.08
    far = max(found(noisy, 0.03, 0.15, "distance"))
    assert far > 1.1 * min(found(noisy, 0.2, 0.5, "distance"))
    assert far > 1.1 * min(found(noisy, 0.003, 0.02, "distance"))
    assert max(found(clean, 0.2, 0.5)) - min(found(clean, 0.03, 0.15)) < 0.01, "without false labels nothing falls"
    assert max(found(clean, 0.003, 0.02)) - min(found(clean, 0.03, 0.15)) < 0.01, "or rises again"
