"""What a search costs beside the steps of its trials, with its SQLite study. Run with `-n 0 -m benchmark -s`.

The trials have one step, the same for all, so nothing is computed: what is left is asking, telling, and writing both to
the ledger and to the study. The driver is timed from its start to its end at three lengths of the study, since a
sampler looks at all trials before; the time that the study takes beside it is added, as if one waited for it. Then two
thousand finished trials are opened again: planned, compared with their study, and reported. The ceilings: 50 ms for a
trial, 3 s for opening.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial
from rich.console import Console

from cluster.runs import events_of
from cluster.store import Store
from search_spaces.projection import Projection
from tests.workflows.conftest import write_recipe
from workflows.command.launch import Ended, launch
from workflows.command.options import Options
from workflows.command.recipe import load_recipe

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

LENGTHS = (100, 200, 400)
MANY = 2_000


@dataclass(frozen=True)
class Searched:
    """A search that ended."""

    ended: Ended
    seconds: float
    """By the clock, in all,"""
    driving: float
    """in the driver; 0 if there was nothing to do,"""
    showing: float
    """and, beside it, in the study's database."""


def searched(folder: Path, trials: int, sampler: str) -> Searched:
    """A search of so many trials, on the store of this folder."""
    from tests.benchmarks.searched import content

    recipe = load_recipe(str(write_recipe(folder, content(trials, sampler=sampler))))
    options = Options(str(folder / "store"), folder / "out", workers=1, wandb="disabled")
    showing: list[float] = []
    bring_up = Projection.bring_up

    def timed(projection: Projection, trials: Sequence[FrozenTrial]) -> str:
        since = time.perf_counter()
        line = bring_up(projection, trials)
        showing.append(time.perf_counter() - since)
        return line

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Projection, "bring_up", timed)
        began = time.time()
        ended = launch(recipe, options, Console(file=io.StringIO()))
        seconds = time.time() - began
    assert ended.code == 0, ended.problems
    events = events_of(Store.open(str(folder / "store")), ended.run)
    times = [event["time"] for event in events if event["event"] == "run" and event["time"] >= began]
    return Searched(ended, seconds, times[-1] - times[0] if times else 0, sum(showing))


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_trial_costs_little_beside_its_steps(sampler: str, tmp_path: Path) -> None:
    costs, before = [], 0
    for trials in LENGTHS:
        made, count = searched(tmp_path, trials, sampler), trials - before
        costs.append(1e3 * (made.driving + made.showing) / count)
        print(
            f"\n{sampler}, trials {before} to {trials}: {1e3 * made.driving / count:.1f} ms each in the driver, "
            f"{1e3 * made.showing / count:.1f} ms in SQLite beside it",
            end="",
        )
        before = trials
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'out' / made.ended.run / 'study.db'}")
    assert len(study.trials) == before
    assert max(costs) < 50


def test_two_thousand_finished_trials_open_again_at_once(tmp_path: Path) -> None:
    first = searched(tmp_path, MANY, "random")
    again = searched(tmp_path, MANY, "random")
    print(
        f"\n{MANY} trials: {first.seconds:.1f} s, {1e3 * first.driving / MANY:.1f} ms each; "
        f"opened again in {again.seconds:.2f} s, {again.showing:.2f} s of it for the study"
    )
    assert again.ended.report is not None
    assert len(again.ended.report.results) == MANY
    assert again.driving == 0, "the driver was started, though all was there"
    assert again.seconds < 3
