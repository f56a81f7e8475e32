"""A search beside Ray Tune on the same trials. Run with `-n 0 -m benchmark -s`; it needs two idle cores.

Sixteen trials of how deep to prune and what radius to train against, over chains of iterative pruning. hedgerow asks
for them first; Tune is then given the same parameters through OptunaSearch and runs the same trainings, two trials at a
time on the same two cores, each chain from its beginning. Both are processes of their own, timed from their start to
their end, and both find the images prepared; hedgerow searches once before and once after Tune, each time on an empty
store, and the mean counts, should the machine become slower or faster meanwhile. The ceilings: 0.45 of the
sample-steps, half of the wall clock, and the same figures trial by trial. Ray Tune needs `pip install "ray[tune]"`.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from cluster.runs import all_runs, events_of, finished_steps
from cluster.store import Store
from cluster.worker import _processor as processor
from tasks.data.mnist_mini import MnistMini
from tests.benchmarks.tune_baseline import CONCURRENT
from tests.workflows.conftest import write_recipe

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

TRIALS = 16
BASE: dict[str, Any] = {
    "kind": "imp",
    "train": {
        "data": {"kind": "mnist-mini", "validation": 1000},
        "architecture": "lenet-300-100",
        "initialiser": "xavier-normal",
        "objective": {"kind": "pgd", "epsilon": 0.1, "steps": 3},
        "optimizer": {"kind": "adam", "learning_rate": 0.0012},
        "epochs": 3,
        "batch_size": 60,
    },
    "prune": {"fraction": 0.4, "output_layer": "half"},
    "levels": 1,
    "controls": [],
    "attacks": [{"kind": "pgd", "steps": 20}],
    "epsilons": [0.1],
    "examples": 500,
}
"""The quickstart, for three epochs instead of five."""
SEARCH: dict[str, Any] = {
    "kind": "search",
    "base": BASE,
    "space": {
        "parameters": {
            "levels": {"int": [1, 8]},
            "train.objective.epsilon": {"choice": [0.05, 0.1, 0.15, 0.2]},
        }
    },
    "objectives": [{"maximise": "robust@0.1"}, {"maximise": "sparsity"}],
    "budget": {"trials": TRIALS},
    "parallel": 4,
}
FIGURES = ("clean", "robust@0.1", "sparsity")


@dataclass(frozen=True)
class Side:
    """What one of the two made of the trials."""

    seconds: float
    """By the clock, from the start of its process to its end,"""
    starting: float
    """of which until it could begin with the first trial."""
    sample_steps: int
    """Of all that it trained."""
    trials: list[tuple[dict[str, Any], dict[str, float]]]
    """Parameters and figures of each trial."""

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s ({self.starting:.1f} s of it starting), {self.sample_steps:,} sample-steps"


def hedgerow(folder: Path) -> Side:
    """`hedgerow search` on a fresh store."""
    folder.mkdir()
    recipe = write_recipe(folder, SEARCH, "search")
    where = ["--store", str(folder / "store"), "--out", str(folder / "out"), "--workers", str(CONCURRENT)]
    began = time.time()
    subprocess.run(
        [sys.executable, "-m", "workflows.command.cli", "search", str(recipe), *where, "--wandb", "disabled"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    seconds = time.time() - began
    store = Store.open(str(folder / "store"))
    (run,) = all_runs(store)
    started = next(event["time"] for event in events_of(store, run.id) if event["event"] == "run")
    steps = finished_steps(store, run.id)
    told = sorted((step.metrics for step in steps if step.kind == "trial"), key=lambda trial: trial["number"])
    cost = sum(step.metrics.get("sample_steps", 0) for step in steps if step.kind == "train")
    return Side(seconds, started - began, cost, [(trial["parameters"], trial["figures"]) for trial in told])


def tune(folder: Path, trials: list[dict[str, Any]]) -> Side:
    """Ray Tune on the same trials."""
    given, results = folder / "trials.json", folder / "results.json"
    points = [{last_part(name): value for name, value in parameters.items()} for parameters in trials]
    given.write_text(json.dumps({"base": BASE, "trials": points}))
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.tune_baseline", str(given), str(results), str(folder / "tune")],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    found = json.loads(results.read_text())
    measured = [(trial["parameters"], trial["metrics"]) for trial in found["trials"]]
    cost = sum(figures["sample-steps"] for _, figures in measured)
    return Side(seconds, seconds - found["running"], cost, measured)


def last_part(path: str) -> str:
    """`epsilon` of `train.objective.epsilon`: what Tune's trials call it."""
    return path.rpartition(".")[2]


def table(side: Side) -> list[list[tuple[str, float]]]:
    """Parameters and figures of all trials, in an order that both sides share."""
    rows = []
    for parameters, figures in side.trials:
        varied = sorted((last_part(name), value) for name, value in parameters.items())
        rows.append([*varied, *((name, figures[name]) for name in FIGURES)])
    return sorted(rows)


@pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason='Ray Tune needs pip install "ray[tune]"')
def test_a_search_takes_less_than_half_of_what_tune_takes_for_the_same_trials(tmp_path: Path) -> None:
    MnistMini(validation=1000).load("train")  # prepared once, for both
    ours = hedgerow(tmp_path / "before")
    theirs = tune(tmp_path, [parameters for parameters, _ in ours.trials])
    again = hedgerow(tmp_path / "after")
    steps, clock = ours.sample_steps / theirs.sample_steps, mean([ours.seconds, again.seconds]) / theirs.seconds
    print(f"\n{TRIALS} trials on {CONCURRENT} cores, {processor()}")
    print(f"hedgerow: {ours}\nRay Tune: {theirs}\nhedgerow: {again}")
    print(f"{steps:.3f} of the sample-steps, {clock:.3f} of the wall clock")
    assert len(ours.trials) == len(theirs.trials) == TRIALS
    assert again.trials == ours.trials
    assert table(ours) == table(theirs)
    assert steps <= 0.45
    assert clock <= 0.5
