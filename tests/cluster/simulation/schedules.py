"""Random schedules: which world a seed stands for, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from tests.cluster.simulation.disk import Weather
from tests.cluster.simulation.faults import KINDS, Faults
from tests.cluster.simulation.fleet import Node
from tests.cluster.simulation.simulation import Driver, Simulation
from tests.cluster.simulation.work import Workflow
from tests.cluster.simulation.world import Machine

LIMIT = 600.0
"""Virtual seconds within which every schedule ends, though some faults take a minute."""
ROUGH = 40.0
"""Virtual seconds after which the store has no more errors of its own."""
AFTERWARDS = 100.0
"""Virtual seconds that a world goes on when all is done: what was cut off or frozen still wants to publish."""


def fail_with(verdicts: Iterable[Verdict], which: str = "") -> None:
    """Says which schedules broke what, and how to see them again.

    Raises:
        AssertionError: one did.
    """
    broken = [verdict for verdict in verdicts if verdict.violations]
    if broken:
        lines = [
            f"python -m tests.cluster.simulation {verdict.seed}{which}  # {verdict.violations[0]}"
            for verdict in broken[:10]
        ]
        raise AssertionError("\n".join([f"{len(broken)} schedules break what must hold:", *lines]))


@dataclass(frozen=True)
class Verdict:
    """What came of a schedule."""

    seed: int
    violations: Sequence[str]
    seconds: float
    """Virtual ones, until the last driver was done."""
    requests: int
    faults: Sequence[str]
    recoveries: Sequence[float]
    """Virtual seconds from the start of a partition or freeze until a step that it held was at work elsewhere."""
    trace: Sequence[str]


def explore(seed: int, tracing: bool = False) -> Verdict:
    """Runs the schedule that a seed stands for.

    Args:
        seed: of the workflow, the cluster, its faults and every delay.
        tracing: whether to keep the events.
    """
    random = Random(f"schedule {seed}")
    count = random.choice((0, 1, 1, 2, 2, 3, 4))
    rough = random.random()
    weather = Weather(
        slowest=random.choice((0.005, 0.02, 0.2)),
        stalls=0.02 if rough < 0.2 else 0.0,
        errors=0.03 if 0.1 < rough < 0.25 else 0.0,
        repeats=0.2 if 0.2 < rough < 0.35 else 0.0,
    )
    failing = random.random() < 0.1
    simulation = Simulation(
        seed,
        nodes=random.randint(2, 3),
        slots=random.randint(1, 3),
        weather=weather,
        duplicates=0.15 if random.random() < 0.2 else 0.0,
        tracing=tracing,
    )
    simulation.fleet.tells_of_death = random.choice((0.0, 0.7, 1.0))
    workflow = Workflow.draw(random, failing)
    for number in range(2 if random.random() < 0.25 else 1):
        shared = random.random() < 0.3
        machine: Machine = random.choice(simulation.nodes) if shared else Machine(f"desk{number}")
        simulation.start(workflow, machine, after=random.uniform(0, 3) * number, verify=random.random() < 0.2)
    faults = Faults(simulation)
    for _ in range(count):
        faults.plan(random.choice(KINDS), random.uniform(0, 12))
    return _Trial(simulation, workflow, faults).verdict()


def gray(seed: int, tracing: bool = False) -> Verdict:
    """One partition or freeze of a busy node, and nothing else: how long until its steps are at work elsewhere."""
    random = Random(f"gray {seed}")
    simulation = Simulation(seed, nodes=3, slots=8, tracing=tracing)
    simulation.fleet.tells_of_death = random.choice((0.0, 1.0))
    workflow = Workflow.draw(random, failing=False)
    simulation.start(workflow, Machine("desk"))
    faults = Faults(simulation)
    faults.plan(random.choice(("partition", "freeze")), random.uniform(0.5, 8))
    return _Trial(simulation, workflow, faults).verdict()


class _Trial:
    """Lets a schedule happen to its end, and measures."""

    def __init__(self, simulation: Simulation, workflow: Workflow, faults: Faults) -> None:
        self._simulation = simulation
        self._workflow = workflow
        self._faults = faults
        self._held: dict[str, float] = {}
        """Steps that a partition or freeze holds, and since when."""
        self._recoveries: list[float] = []
        self._last: Driver | None = None
        self._done_at = 0.0
        faults.on_gray, faults.on_heal = self._strike, self._heal
        faults.when_over = self._settle
        simulation.referee.at_work = self._at_work
        for driver in simulation.drivers:
            driver.when_done = self._settle

    def verdict(self) -> Verdict:
        simulation, referee = self._simulation, self._simulation.referee
        simulation.world.after(ROUGH, lambda: setattr(simulation.disk, "fair", True))
        simulation.run(LIMIT)
        return Verdict(
            simulation.seed,
            tuple(referee.violations),
            self._done_at,
            simulation.disk.requests,
            tuple(kind for kind, _ in self._faults.struck),
            tuple(self._recoveries),
            simulation.world.trace,
        )

    def _strike(self, node: Node) -> None:
        for execution in node.executions.values():
            self._held.setdefault(execution.attempt.order.key, self._simulation.world.now)

    def _heal(self, node: Node) -> None:
        for execution in node.executions.values():
            self._at_work(execution.attempt.order.key)

    def _at_work(self, key: str) -> None:
        if key in self._held:
            self._recoveries.append(self._simulation.world.now - self._held.pop(key))

    def _settle(self) -> None:
        """Once drivers are through and faults over: what is damaged is looked for, zombies come back, then the end."""
        simulation = self._simulation
        if self._faults.under_way or not all(driver.done for driver in simulation.drivers):
            return
        if self._faults.damaging and self._last is None:
            self._last = simulation.start(self._workflow, Machine("desk last"), verify=True)
            self._last.when_done = self._settle
            return
        self._done_at = self._done_at or simulation.world.now
        simulation.world.after(AFTERWARDS, self._end)

    def _end(self) -> None:
        self._simulation.referee.judge(self._simulation.disk.objects)
        self._simulation.world.finish()
