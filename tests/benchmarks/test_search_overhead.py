"""What a search costs beside the steps of its trials, with its SQLite study. Run with `-n 0 -m benchmark -s`.

The trials have one step, the same for all, so nothing is computed: what is left is asking, telling, and writing both to
the ledger and to the study. A trial's share is taken between the start and the end of the driver, at three lengths of
the study: a sampler looks at all trials before. Then two thousand finished trials are opened again: planned, compared
with their study, and reported. The ceilings: 50 ms for a trial, 3 s for opening.
"""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from cluster.runs import all_runs, events_of, finished_steps
from cluster.store import Store
from tests.workflows.conftest import write_recipe
from workflows.command.launch import Ended, Options, launch
from workflows.command.recipe import load_recipe

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

LENGTHS = (100, 200, 400)
MANY = 2_000


def searched(folder: Path, trials: int, sampler: str) -> tuple[Ended, float, float]:
    """A search to its end: how it ended, seconds by the clock in all, and in the driver."""
    from tests.benchmarks.searched import content

    folder.mkdir(exist_ok=True)
    recipe = load_recipe(str(write_recipe(folder, content(trials, sampler=sampler))))
    options = Options(str(folder / "store"), folder / "out", workers=1, wandb="disabled")
    began = time.time()
    ended = launch(recipe, options, Console(file=io.StringIO()))
    seconds = time.time() - began
    store = Store.open(str(folder / "store"))
    times = [event["time"] for event in events_of(store, ended.run) if event["event"] == "run"]
    driven = times[-1] - times[-2] if times[-2] >= began - 0.01 else 0.0
    assert ended.code == 0, ended.problems
    return ended, seconds, driven


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_trial_costs_little_beside_its_steps(sampler: str, tmp_path: Path) -> None:
    costs, before = [], 0
    for trials in LENGTHS:
        ended, _, driven = searched(tmp_path, trials, sampler)
        costs.append(1e3 * driven / (trials - before))
        print(f"\n{sampler}, trials {before} to {trials}: {costs[-1]:.1f} ms each", end="")
        before = trials
    assert (tmp_path / "out" / ended.run / "study.db").exists()
    assert max(costs) < 50


def test_two_thousand_finished_trials_open_again_at_once(tmp_path: Path) -> None:
    _, first, driven = searched(tmp_path, MANY, "random")
    again, seconds, computing = searched(tmp_path, MANY, "random")
    store = Store.open(str(tmp_path / "store"))
    (run,) = all_runs(store)
    told = [step for step in finished_steps(store, run.id) if step.kind == "trial"]
    print(f"\n{MANY} trials: {first:.1f} s, {1e3 * driven / MANY:.1f} ms each; opened again in {seconds:.2f} s")
    assert len(told) == MANY
    assert again.report is not None
    assert len(again.report.results) == MANY
    assert computing == 0, "the driver was started, though all was there"
    assert seconds < 3
