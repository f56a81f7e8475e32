"""The shipped epsilon sweep on two workers beside one, and beside attacking each of its cells on its own.

Run with `-n 0 -m benchmark -s`. For the same work, two workers against one begin with an empty store and the same
seeds, taking turns, on workers that have imported torch and prepared the data; it needs two idle cores. A cell on its
own is an `Evaluate` at its radius with the attacks of the sweep, of the same trained network: the images that went
through the network are counted, those of clean accuracy and of the scout included; with and without the probes for
masked gradients, since a sweep probes a network once, and others who attack a cell would not. The floors: two workers
1.8 times as fast as one; half the images, probes or no probes; and no column of the matrix more than 0.5 points above
what the cells on their own have.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

from cluster.engine import Engine
from cluster.executor import RayExecutor
from cluster.flow import Flow
from cluster.runs import Finished
from cluster.session import session
from cluster.store import Store
from tasks.device import settle
from tasks.measuring.evaluate import Evaluate
from tasks.measuring.outcomes import FILE, Outcomes
from tasks.task import Alone
from workflows.command.recipe import load_recipe
from workflows.epsilon_sweep import EpsilonSweep

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3000)]

ROUNDS = 2
GRIDS: dict[str, list[str]] = {
    "as shipped": [],
    "radii between the rungs": [f"deltas={[step / 255 for step in range(8, 72, 8)]}"],
    "two attacks": ["attacks=[{kind: pgd, steps: 40}, {kind: apgd}]"],
}
"""Overrides of the recipe."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Where the grids find each other's networks."""
    return Store.open(str(tmp_path_factory.mktemp("grids")))


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    settle(1)
    yield
    torch.set_num_threads(threads)


def sweep(*overrides: str) -> EpsilonSweep:
    """The shipped recipe: 8 x 8 radii and 2 seeds."""
    made = load_recipe("epsilon-sweep", overrides).workflow
    assert isinstance(made, EpsilonSweep)
    assert (len(made.epsilons), len(made.deltas), made.replicates) == (8, 8, 2)
    return made


def warm_up() -> EpsilonSweep:
    """Four short trainings and their cells: enough for each worker to have had some."""
    overrides = ["train.epochs=1", "train.guard=null", "epsilons=[0.1, 0.2]", "deltas=[0.1]", "examples=50"]
    made = load_recipe("epsilon-sweep", overrides).workflow
    assert isinstance(made, EpsilonSweep)
    return made


def swept(made: EpsilonSweep, store: Store, ray: Any) -> tuple[float, list[Finished]]:
    """Seconds by the clock, and the finished steps."""
    finished: list[Finished] = []

    def tell(state: str, handle: Any, **news: Any) -> None:
        if state in ("published", "found"):
            finished.append(Finished(handle.at, news["published"]))

    began = time.perf_counter()
    asyncio.run(made.run(Flow(Engine(store, RayExecutor(ray), tell))))
    return time.perf_counter() - began, finished


def on_workers(cpus: int, made: EpsilonSweep, folder: Path) -> tuple[float, list[Finished]]:
    """In an empty store, on workers that are warm."""
    with session("local", cpus=cpus) as ray:
        swept(warm_up(), Store.open(str(folder / "warm")), ray)
        return swept(made, Store.open(str(folder / "store")), ray)


def test_two_workers_sweep_nearly_twice_as_fast_as_one(tmp_path: Path) -> None:
    pairs = []
    for number in range(ROUNDS):
        made = sweep(f"train.seed={10 * number}", f"train.init_seed={10 * number}")
        seconds, found = {}, {}
        for cpus in (1, 2):
            seconds[cpus], finished = on_workers(cpus, made, tmp_path / f"{number}-{cpus}")
            inside = sum(step.step.manifest["seconds"] for step in finished)
            idle = 1 - inside / (cpus * seconds[cpus])
            found[cpus] = {step.step.key: step.metrics for step in finished}
            print(f"\nworkers {cpus}: {seconds[cpus]:.1f} s, {idle:.1%} of it outside of the {len(finished)} tasks")
        assert found[1] == found[2]
        pairs.append((seconds[1], seconds[2]))
    gains = [one / two for one, two in pairs]
    shown = ", ".join(f"one {one:.1f} s, two {two:.1f} s" for one, two in pairs)
    print(f"{shown}: {statistics.median(gains):.2f} times as fast")
    assert statistics.median(gains) >= 1.8


@dataclass(frozen=True)
class Cell:
    """One network at one radius, in the sweep and on its own."""

    delta: float
    costs: Mapping[str, int]
    """Images that went through the network for the cell on its own, and what for."""
    seconds: float
    """By the clock, likewise."""
    ours: torch.Tensor
    """(N,) bool, which examples stand in the sweep."""
    theirs: torch.Tensor
    """Which stand in the cell on its own."""

    @property
    def gap(self) -> float:
        """By how much more stands in the sweep."""
        return float(self.ours.double().mean() - self.theirs.double().mean())


def alone(made: EpsilonSweep, trained: Any, step: Finished) -> Cell:
    """A cell attacked on its own."""
    delta = step.at["delta"]
    single = {"attacks": made.attacks, "epsilons": (delta,), "descend": False}
    task = Evaluate.model_validate({**dict(made.evaluation(step.at["weights"])), **single})
    began = time.perf_counter()
    result = task.run(Alone(), trained=trained)
    seconds = time.perf_counter() - began
    ours, theirs = (
        Outcomes.from_bytes(content).standing(delta) for content in (step.step.read(FILE), result.files[FILE])
    )
    return Cell(delta, result.metrics["costs"], seconds, ours, theirs)


def images(costs: Iterable[Mapping[str, int]], left_out: set[str]) -> int:
    """How many went through the networks."""
    return sum(count for each in costs for purpose, count in each.items() if purpose not in left_out)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("grid", GRIDS)
def test_a_sweep_costs_at_most_half_of_its_cells_on_their_own(grid: str, store: Store) -> None:
    made = sweep(*GRIDS[grid])
    with session("local", cpus=2) as ray:
        _, finished = swept(made, store, ray)
    trained = {step.step.key: step.step for step in finished if step.kind == "train"}
    measured = [step for step in finished if step.kind == "evaluate"]
    cells = [
        alone(made, trained[step.step.manifest["inputs"]["trained"]], step) for step in measured if "delta" in step.at
    ]
    assert len(cells) == len(made.deltas) * len(trained)
    seconds = sum(step.step.manifest["seconds"] for step in measured), sum(cell.seconds for cell in cells)
    print(
        f"\n{grid}: {seconds[0]:.1f} s in the {len(measured)} tasks of the sweep, {seconds[1]:.1f} s in the cells alone"
    )
    shares = {}
    for name, left_out in (("all in all", set()), ("without probes", {"probes"})):
        ours = images((step.metrics["costs"] for step in measured), left_out)
        theirs = images((cell.costs for cell in cells), left_out)
        shares[name] = ours / theirs
        print(f"  {name}: {ours:,} images in the sweep, {theirs:,} in the cells alone: {shares[name]:.3f} of it")
    missed = sum(int((cell.ours & ~cell.theirs).sum()) for cell in cells)
    gained = sum(int((~cell.ours & cell.theirs).sum()) for cell in cells)
    verdicts = sum(len(cell.ours) for cell in cells)
    print(f"  of {verdicts:,} verdicts {missed} stand in the sweep alone, {gained} in the cells alone")
    gaps = {delta: mean(cell.gap for cell in cells if cell.delta == delta) for delta in made.deltas}
    print("  points above: " + ", ".join(f"{100 * gap:+.2f} at {delta:.4g}" for delta, gap in gaps.items()))
    assert max(shares.values()) <= 0.5
    assert max(gaps.values()) <= 0.005
