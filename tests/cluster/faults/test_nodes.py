"""What happens to workers and nodes: killed, frozen, drained, joining."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.ledger import Ledger
from cluster.order import Terms
from tests.cluster.clusters import Cluster, Node, cluster, drain
from tests.cluster.faults.climbs import Work
from tests.cluster.faults.trials import REPETITIONS, TERMS, Trial, calm, leases_of, trial

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
SHIPPED = Terms()
LONG = Work(end=130)
"""Thirteen seconds: longer than the time between two checkpoints as shipped."""


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    with cluster() as nodes:
        yield nodes


@pytest.fixture
def made(shared: Cluster) -> Iterator[Cluster]:
    """Two nodes with more room than work: others when the last test did something to one of them."""
    while len(shared.nodes) < 2:
        shared.add(2)
    yield shared
    for node in [node for node in shared.nodes if node.name in STRUCK]:
        node.signal(signal.SIGCONT)
        node.kill()
        shared.nodes.remove(node)


STRUCK: set[str] = set()
"""The names of nodes that are of no use any more."""


def struck(made: Cluster, name: str) -> Node:
    """The node of this name, which something will be done to."""
    STRUCK.add(name)
    return made.named(name)


def begin(run: Trial, nodes: Cluster, link: int) -> None:
    """Starts a driver and waits until all climbs have come so far."""
    calm(nodes, run.folder, run.work, terms=run.terms)
    run.start(nodes)
    run.until_at(link)


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_a_killed_worker_costs_less_than_two_checkpoints(made: Cluster, tmp_path: Path, repetition: int) -> None:
    with trial("worker killed", tmp_path / "run") as run:
        begin(run, made, 25 + repetition)
        worker = run.at()[0]
        run.strike(worker["node"])
        run.affected = {0}
        psutil.Process(worker["pid"]).kill()
        run.finish()
        figures = run.figures()
    assert figures.lost < 2 * TERMS.checkpoint
    assert figures.recovery is not None
    assert figures.recovery < 10


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_a_killed_raylet_takes_only_its_own_steps_along(made: Cluster, tmp_path: Path, repetition: int) -> None:
    with trial("raylet killed", tmp_path / "run") as run:
        begin(run, made, 25 + repetition)
        victim = struck(made, run.busy())
        run.strike(victim.name)
        victim.signal(signal.SIGKILL, "raylet/raylet")
        run.finish()
        figures = run.figures()
    assert figures.lost < 2 * TERMS.checkpoint * len(run.affected)
    assert figures.recovery is not None
    assert figures.recovery < 30


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_a_frozen_node_is_passed_over_within_30_seconds(made: Cluster, tmp_path: Path, repetition: int) -> None:
    """It thaws while its steps are computed elsewhere, and must not publish."""
    with trial("raylet and workers frozen", tmp_path / "run", LONG, terms=SHIPPED) as run:
        begin(run, made, 105 + repetition)
        victim = struck(made, run.busy())
        run.strike(victim.name)
        victim.signal(signal.SIGSTOP)
        run.until_begun_again()
        time.sleep(1)
        victim.signal(signal.SIGCONT)
        run.finish()
        figures = run.figures()
    assert figures.recovery is not None
    assert figures.recovery < 30


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_a_frozen_raylet_keeps_no_result_to_itself(made: Cluster, tmp_path: Path, repetition: int) -> None:
    """Its workers go on and publish, but nobody is told that they are done: the driver reads it off the store.

    A step that Ray hands to the frozen raylet only then has no lease that could fall silent: it waits until Ray's own
    health check gives the node up, and begins elsewhere.
    """
    with trial("raylet frozen, workers not", tmp_path / "run") as run:
        begin(run, made, 50 + repetition)
        victim = struck(made, run.busy())
        run.strike()
        victim.signal(signal.SIGSTOP, "raylet/raylet")
        run.finish()
        figures = run.figures(run.standstill())
        ended = {line["step"]: line["t"] for line in run.lines() if line["what"] == "end"}
        known = {event["number"]: event["t"] for event in run.drivers[-1].states("published")}
    assert max(known[number] - ended[number] for number in range(run.work.width)) < 10
    assert figures.lost == 0
    assert figures.longer is not None
    assert figures.longer < 30


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_steps_of_a_drained_node_save_their_state_and_move(made: Cluster, tmp_path: Path, repetition: int) -> None:
    with trial("node drained", tmp_path / "run", Work(end=100)) as run:
        begin(run, made, 25 + repetition)
        victim = struck(made, run.busy())
        run.strike(victim.name)
        drain(made, _node_id(made, run, victim.name), 20.0)
        run.finish()
        figures = run.figures()
    assert figures.lost == 0
    assert figures.recovery is not None
    assert figures.recovery < 15


def _node_id(made: Cluster, run: Trial, name: str) -> str:
    started = {event["number"]: event["key"] for event in run.drivers[-1].states("started")}
    number = next(line["step"] for line in run.at().values() if line["node"] == name)
    (lease,) = leases_of(Ledger(run.store), started[number])
    return str(lease.record["node"])


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_a_node_that_joins_is_used_within_seconds(made: Cluster, tmp_path: Path, repetition: int) -> None:
    """Six steps for four CPUs; the fifth and the sixth begin on the new node. Its own start is part of the time."""
    with trial("node joins", tmp_path / "run", Work(width=6, end=250)) as run:
        run.start(made)
        run.until(lambda: len(run.at()) == 4)
        waiting = set(range(6)) - set(run.at())
        run.strike()  # before it joins: Ray may give it work at once
        run.affected = waiting
        newcomer = struck(made, made.add(2).name)
        run.finish()
        figures = run.figures()
        there = {line["step"] for line in run.lines() if line["node"] == newcomer.name}
    assert there == run.affected
    assert figures.recovery is not None
    assert figures.recovery < 15
