"""The matrices of an epsilon sweep, from the outcomes that its cells hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from cluster.ledger import Damaged
from cluster.runs import Finished
from tasks.measuring.intervals import accuracy_of
from tasks.measuring.outcomes import FILE, Outcomes
from tasks.measuring.over_design import BestTraining, best_training
from tasks.measuring.spectrum import spectrum

if TYPE_CHECKING:
    from workflows.epsilon_sweep import EpsilonSweep


@dataclass(frozen=True)
class Panel:
    """What one matrix is of."""

    weights: str
    network: str
    """Dense, a level of a pruning chain, or under a mask."""


@dataclass(frozen=True)
class Row:
    """One trained network under all attacks."""

    panel: Panel
    epsilon: float
    """Radius of its training."""
    replicate: int
    trained: Finished
    cells: Mapping[float, Finished]
    """By the radius of the attacks."""
    outcomes: Outcomes

    @property
    def density(self) -> float:
        """Share of the weights that it has kept."""
        return float(self.trained.metrics["density"])

    @property
    def rolled_back(self) -> bool:
        """Whether a guard ended its training and went back."""
        return "rolled_back_to" in self.trained.metrics.get("stopped", {})

    def right(self, delta: float) -> torch.Tensor:
        """(N,) bool, which examples stand at this radius; at 0 which are right without attack."""
        return self.outcomes.standing(delta) if delta else self.outcomes.correct


def rows_of(
    sweep: EpsilonSweep, finished: Sequence[Finished], trained: Mapping[str, Finished]
) -> tuple[list[Row], list[str]]:
    """The networks with at least one cell, in the order of the grid, and what cannot be read.

    Args:
        sweep: the workflow.
        finished: its steps.
        trained: the trainings among them by key.
    """
    cells: dict[tuple[Panel, float, int], dict[float, tuple[Finished, Outcomes]]] = {}
    complaints = []
    for step in finished:
        delta, epsilon = step.at.get("delta"), step.at.get("epsilon")
        if step.kind != "evaluate" or delta not in sweep.deltas or epsilon not in sweep.epsilons:
            continue
        try:
            outcomes = Outcomes.from_bytes(step.step.read(FILE))
        except Damaged as problem:
            complaints.append(f"a cell is left out, run again with `--verify` to compute it anew: {problem}")
            continue
        cells.setdefault((panel_of(step), epsilon, step.at["replicate"]), {}).setdefault(delta, (step, outcomes))
    rows = []
    for (panel, epsilon, replicate), found in cells.items():
        source = trained[next(iter(found.values()))[0].step.manifest["inputs"]["trained"]]
        joined = spectrum([outcomes for _, outcomes in found.values()])
        steps = {delta: step for delta, (step, _) in found.items()}
        rows.append(Row(panel, epsilon, replicate, source, steps, joined))
    order = list(dict.fromkeys(row.panel for row in rows))
    return sorted(rows, key=lambda row: (order.index(row.panel), row.epsilon, row.replicate)), complaints


def panel_of(step: Finished) -> Panel:
    """The matrix that a step belongs to."""
    network = step.at.get("mask") or (f"level {step.at['level']}" if "level" in step.at else "dense")
    return Panel(step.at["weights"], network)


def matrix_of(sweep: EpsilonSweep, rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Each cell of a matrix: the mean over replicates, and an interval that holds those of all of them.

    Accuracy falls along delta in every replicate, and so do both ends of its interval: their mean, lowest and highest
    fall as well, where no replicate is missing.

    Args:
        sweep: the workflow.
        rows: of one panel.
    """
    for epsilon in sweep.epsilons:
        own = [row for row in rows if row.epsilon == epsilon]
        for delta in (0.0, *sweep.deltas):
            measured = [row for row in own if not delta or delta in row.cells]
            each = [accuracy_of(row.right(delta)) for row in measured]
            if each:
                yield {
                    "weights": own[0].panel.weights,
                    "network": own[0].panel.network,
                    "density": own[0].density,
                    "epsilon": epsilon,
                    "delta": delta,
                    "accuracy": mean(found["accuracy"] for found in each),
                    "low": min(found["low"] for found in each),
                    "high": max(found["high"] for found in each),
                    "rolled_back": sum(row.rolled_back for row in measured),
                    "replicates": [
                        {
                            "replicate": row.replicate,
                            **accuracy,
                            "trained": row.trained.step.key,
                            "step": row.cells[delta].step.key if delta else row.trained.step.key,
                        }
                        for row, accuracy in zip(measured, each, strict=True)
                    ],
                }


def best_of(sweep: EpsilonSweep, rows: Sequence[Row]) -> Iterator[BestTraining]:
    """For each radius of attack that all networks of the grid have met, the training that serves best.

    Args:
        sweep: the workflow.
        rows: of one panel.
    """
    wanted = {(epsilon, replicate) for epsilon in sweep.epsilons for replicate in range(sweep.replicates)}
    if len(sweep.epsilons) < 2 or len(rows[0].outcomes) < 2:
        return
    for delta in sweep.deltas:
        met = [row for row in rows if delta in row.cells]
        if {(row.epsilon, row.replicate) for row in met} != wanted:
            continue
        standing: dict[float, list[torch.Tensor]] = {}
        for row in met:
            standing.setdefault(row.epsilon, []).append(row.right(delta))
        found = best_training(delta, standing)
        if found.accuracy:  # where nothing stands, nothing is best
            yield found
