"""What steps need of nodes, what people say about it, and what is said when no node will do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import placement
from cluster.failures import StepFailed
from cluster.flow import Flow
from cluster.order import Order, Outcome
from cluster.placement import (
    GB,
    GPU_TYPE,
    UNSEEN,
    Machine,
    Needs,
    Nodes,
    Turns,
    Unplaced,
    misfit,
    parse_rules,
    with_gpus,
)
from cluster.profiles import Placing
from cluster.store import Store
from tests.cluster.driving import ThreadExecutor
from tests.cluster.sharing import Meet, placed
from tests.cluster.toys import Add, Made

H100 = Machine({"CPU": 8, "GPU": 2, "memory": 64 * GB}, {GPU_TYPE: "H100", "zone": "a"})
T4 = Machine({"CPU": 64, "GPU": 1, "memory": 12 * GB}, {GPU_TYPE: "T4", "zone": "b"})
HEAD = Machine({"memory": 8 * GB}, {})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("gpus", "allowed is [KIND:]NAME=VALUE"),
        (":gpus=1", "before the colon stands a kind of step"),
        ("gpus=many", "'many' is no gpus; allowed: 0, a fraction"),
        ("gpus=1.5", "'1.5' is no gpus"),
        ("gpus=-1", "'-1' is no gpus"),
        ("gpus=nan", "'nan' is no gpus"),
        ("gpus=1e-9", "'1e-9' is no gpus"),
        ("memory=0", "'0' is no memory; allowed: GB above 0, or auto"),
        ("memory=inf", "'inf' is no memory"),
        ("gpu=1", "did you mean gpus?"),
        ("memori=1", "did you mean memory?"),
        ("cpus=4", "the CPUs of a step are its field `threads`"),
        ("-x=1", "'-x' is no label"),
        ("zone=in(a", "'in(a' is no value of a label"),
        ("zone=", "'' is no value of a label"),
    ],
)
def test_a_rule_that_nobody_can_mean_is_one_clear_line(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^--place ") as error:
        parse_rules([text])
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def needs(task: Any, *rules: str, starved: int = 0) -> Needs:
    return Placing(parse_rules(rules)).needs(task, starved)


def test_rules_change_what_a_step_needs_and_the_more_particular_one_holds() -> None:
    task = Meet(1, "", 1, gpus=1)
    assert needs(task) == Needs(1, 1)
    assert needs(task, "meet:gpus=0.5", "gpus=0.25", "memory=2", "memory=8") == Needs(1, 0.5, 8 * GB)
    assert needs(task, "add:memory=8") == Needs(1, 1)
    assert needs(Meet(1, "", 1, threads=4), "zone=!b") == Needs(4, 0, 0, (("zone", "!b"),))
    assert needs(Add(1, threads=0), "memory=8", "zone=a") == Needs(0)
    assert needs(task, "zone=!in(a, b,  c)").labels == (("zone", "!in(a,b,c)"),)


def test_rules_about_gpus_leave_alone_who_asks_for_none_unless_its_kind_is_named() -> None:
    idle = Meet(1, "", 1)
    assert needs(idle, "gpus=0.5", f"{GPU_TYPE}=H100") == Needs(1, 0)
    assert needs(idle, "meet:gpus=0.5", f"{GPU_TYPE}=H100") == Needs(1, 0.5, 0, ((GPU_TYPE, "H100"),))
    assert needs(idle, f"meet:{GPU_TYPE}=H100").labels == ((GPU_TYPE, "H100"),)
    assert needs(Meet(1, "", 1, gpus=1), "gpus=0", f"{GPU_TYPE}=H100") == Needs(1, 0)


def test_no_rule_changes_what_a_step_computes() -> None:
    task = Add(1, gpus=1)  # whose identity names its GPUs
    assert needs(task, "gpus=0.5") == needs(task, "gpus=auto") == Needs(1, 1)
    with pytest.raises(ValueError, match=r"--place add:gpus=0.5: the gpus of `add` are part of what it computes"):
        needs(task, "add:gpus=0.5")
    moved = with_gpus(Meet(1, "", 1), 0.5)
    assert (moved.gpus, moved.identity()) == (0.5, Meet(1, "", 1).identity())


def test_who_ran_out_of_memory_gets_a_whole_gpu_and_twice_the_memory() -> None:
    task = Meet(1, "", 1, gpus=0.25)
    assert needs(task, "memory=3", starved=1) == Needs(1, 1, 6 * GB)
    assert needs(task, starved=1) == Needs(1, 1, 0)
    assert needs(Meet(1, "", 1), "memory=3", starved=1) == Needs(1, 0, 6 * GB)


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (Needs(8, 2, 64 * GB, ((GPU_TYPE, "H100"), ("zone", "in(a,c)"))), ""),
        (Needs(64, 1), ""),
        (Needs(0), ""),
        (Needs(1, 0, 0, ((GPU_TYPE, "!H100"),)), ""),
        (Needs(1, 1, 0, ((GPU_TYPE, "A100"),)), f"no node has label {GPU_TYPE}=A100: nodes have H100, T4"),
        (Needs(1, 1, 0, (("rack", "7"),)), "no node has label rack=7: nodes have no rack"),
        (Needs(1, 0, 0, (("zone", "a"), (GPU_TYPE, "T4"))), f"no node has all the labels zone=a and {GPU_TYPE}=T4"),
        (Needs(1, 3), "needs 3 GPUs: the largest node has 2"),
        (Needs(1, 2, 0, (("zone", "b"),)), "needs 2 GPUs: the largest node with zone=b has 1"),
        (Needs(65), "needs 65 CPUs: the largest node has 64"),
        (Needs(1, 0, 100 * GB), "needs 100 GB: the largest node has 64 GB"),
        (Needs(8, processes=9), ""),
        (Needs(8, processes=10), "needs 8 CPUs for each of 10 processes: all nodes have room for 9"),
        (Needs(9, 2, 0), "needs 2 GPUs, 9 CPUs on one node: no node has all of it"),
        (Needs(1, 1, processes=3), ""),
        (Needs(1, 1, processes=4), "needs 1 GPU, 1 CPU for each of 4 processes: all nodes have room for 3"),
    ],
)
def test_it_is_said_why_no_node_will_do(wanted: Needs, why: str) -> None:
    assert misfit(wanted, [HEAD, H100, T4]) == why


def test_the_unplaceable_is_said_once_and_not_waited_for_for_ever() -> None:
    now = [0.0]
    patience = Unplaced(60, lambda: now[0])
    wanted, other = Needs(9), Needs(8)
    told = []
    for second in range(0, 56, 5):
        now[0] = second
        told += [second] * patience.look(wanted, "too large")[0]
        assert patience.look(wanted, "too large") == (False, "")
    assert told == [15]
    now[0] = 60
    assert patience.look(other, "why") == (False, "")
    assert patience.look(wanted, "too large")[1] == (
        "no node can run it: too large; waited 60 s for one that can (--wait-for-nodes)"
    )
    assert patience.look(wanted, "") == (False, "")  # a node joined
    assert patience.look(wanted, "too large") == (False, "")


def test_patience_begins_anew_when_nobody_looked_for_long() -> None:
    """A cluster that scales from zero: all begin, and much later the only node goes."""
    now = [0.0]
    patience = Unplaced(60, lambda: now[0])
    wanted = Needs(9)
    for second in (0.0, 5.0, 16.0):
        now[0] = second
        patience.look(wanted, "too large")
    now[0] = later = 16 + UNSEEN + 1
    assert patience.look(wanted, "too large") == (False, "")
    told = []
    for second in range(5, 60, 5):
        now[0] = later + second
        say, end = patience.look(wanted, "too large")
        assert not end
        told += [second] * say
    assert told == [15]
    now[0] = later + 60
    assert "waited 60 s" in patience.look(wanted, "too large")[1]


def test_what_nodes_can_run_is_worked_out_once_until_there_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at 1,000 machines takes a millisecond, and a driver may have 1,024 attempts in its queue."""
    asked: list[Needs] = []
    monkeypatch.setattr(
        placement, "misfit", lambda needs, machines: asked.append(needs) or f"{len(machines)} are too small"
    )
    machines = [Machine({"CPU": 2}, {})]
    nodes = Nodes(lambda: machines)
    for _ in range(100):
        assert nodes.misfit(Needs(4)) == "1 are too small"
        assert nodes.room(Needs(1)) == 2
    assert asked == [Needs(4)]
    machines = [*machines, Machine({"CPU": 5}, {})]
    assert nodes.misfit(Needs(4)) == "2 are too small"
    assert nodes.room(Needs(1)) == 7
    assert nodes.room(Needs(2, processes=3)) == 1


def test_no_more_teams_at_once_than_nodes_have_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "asyncio", SimpleNamespace(sleep=lambda seconds: asyncio.sleep(0.001)))
    turns = Turns(Nodes(lambda: [Machine({"CPU": 4}, {}), Machine({"CPU": 5}, {}), Machine({"CPU": 9}, {"zone": "b"})]))
    at_once = dict.fromkeys((1, 2), 0)
    most = dict(at_once)

    async def work(needs: Needs) -> None:
        async with turns.turn(needs):
            at_once[needs.processes] += 1
            most[needs.processes] = max(most[needs.processes], at_once[needs.processes])
            await asyncio.sleep(0.01)
            at_once[needs.processes] -= 1

    async def all_of_them() -> None:
        teams = [work(Needs(2, 0, 0, (("zone", "!b"),), processes=2)) for _ in range(6)]
        await asyncio.wait_for(asyncio.gather(*teams, *(work(Needs(2)) for _ in range(20))), 5)

    asyncio.run(all_of_them())
    assert most == {1: 20, 2: 2}


def test_a_team_for_which_there_is_no_room_yet_is_asked_for_all_the_same() -> None:
    """Else nobody would learn that it is waited for: neither the cluster, which may grow, nor the user."""

    async def one() -> None:
        async with Turns(Nodes(list)).turn(Needs(processes=2)):
            pass

    asyncio.run(asyncio.wait_for(one(), 5))


def test_a_team_that_fails_gives_its_turn_back() -> None:
    turns = Turns(Nodes(lambda: [Machine({"CPU": 2}, {})]))

    async def two() -> None:
        with pytest.raises(ValueError, match="no good"):
            async with turns.turn(Needs(processes=2)):
                raise ValueError("no good")
        async with turns.turn(Needs(processes=2)):
            pass

    asyncio.run(asyncio.wait_for(two(), 5))


class Narrow(ThreadExecutor):
    """Starts an attempt only where a node could run it, as Ray does."""

    def __init__(self, *machines: Machine) -> None:
        super().__init__()
        self.nodes: Sequence[Machine] = machines
        self.given: list[Needs] = []

    def submit(self, order: Order) -> Any:
        self.given.append(order.needs)
        if misfit(order.needs, self.nodes):
            return asyncio.get_running_loop().create_future()
        return super().submit(order)

    def machines(self) -> Sequence[Machine]:
        return self.nodes

    def kill(self, running: Any) -> None:
        if not running.done():
            running.set_result(Outcome("failed", "preempted", "killed"))


def test_a_step_that_no_node_can_run_fails_with_the_reason_and_the_others_go_on(disk: Store) -> None:
    made = placed(disk, Narrow(T4), 0.5)

    async def run(flow: Flow) -> list[Any]:
        large, small = flow.step(Add(1, gpus=2)), flow.step(Add(2))
        return await asyncio.gather(large, small, return_exceptions=True)

    failure, fine = made.run(run)
    assert fine == {"sum": 2}
    assert isinstance(failure, StepFailed)
    assert failure.cause == "node"
    assert failure.message.startswith("no node can run it: needs 2 GPUs: the largest node has 1; waited 0.5 s")
    assert made.count("retried") == 0


def test_a_step_out_of_memory_is_given_more_by_its_next_attempt(disk: Store) -> None:
    executor = Narrow(Machine({"CPU": 1, "GPU": 1, "memory": 64 * GB}, {}))
    made = placed(disk, executor, 1, "memory=4", "gpus=0.25")

    @dataclass
    class Hungry(Meet):
        def run(self, context: Any, **inputs: Any) -> Made:
            if len(executor.given) == 1:
                raise MemoryError
            return Made({"gpus": self.gpus})

    assert made.run(lambda flow: flow.step(Hungry(1, "", 1, gpus=1)).published()).metrics == {"gpus": 1}
    assert executor.given == [Needs(1, 0.25, 4 * GB), Needs(1, 1, 8 * GB)]
    assert [news["cause"] for news in made.news("retried")] == ["oom"]
