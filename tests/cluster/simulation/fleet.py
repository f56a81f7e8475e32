"""A simulated Ray: nodes with slots, a head that notices late, results that get lost, attempts that run twice."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster import placement, worker
from cluster.order import Order, Outcome
from cluster.session import ClusterUnreachable
from tests.cluster.simulation.clocks import Loop
from tests.cluster.simulation.referee import Label, Referee
from tests.cluster.simulation.world import Machine, Process, World


class Node(Machine):
    """A machine with a raylet."""

    def __init__(self, name: str, slots: int, skew: float = 0.0) -> None:
        super().__init__(name, skew)
        self.slots = slots
        self.free = slots
        self.alive = True
        self.draining = False
        self.known_dead = False
        """The head gave it up; if it comes back, its raylet ends itself."""
        self.boots = 0
        self.idle: list[Process] = []
        self.executions: dict[Process, Execution] = {}
        self.mail: list[tuple[Execution, Callable[[], None]]] = []
        """What waits for its network to heal, and of what it tells."""

    @property
    def id(self) -> str:
        """A raylet that starts has a new name, whatever ran there before."""
        return f"{self.name}-{self.boots}"


@dataclass(eq=False)
class Attempt:
    """What a driver holds of an attempt."""

    order: Order
    driver: Process
    future: asyncio.Future[Outcome]
    cancelled: bool = False
    executions: list[Execution] = field(default_factory=list)


@dataclass(eq=False)
class Execution:
    """An attempt at work on a node; Ray may start two of one attempt."""

    attempt: Attempt
    node: Node
    process: Process
    label: Label


class Fleet:
    """The nodes and the head."""

    def __init__(self, world: World, referee: Referee, nodes: list[Node], duplicates: float = 0.0) -> None:
        self.world = world
        self.referee = referee
        self.nodes = nodes
        self.lost = False
        self.tells_of_death = 0.7
        """How likely the head tells a driver of an attempt whose node died; else nothing is heard of it again."""
        self.on_crash: Callable[[Node], None] = lambda node: None
        self._duplicates = duplicates
        self._queue: deque[Attempt] = deque()

    # placing

    def submit(self, order: Order, loop: Loop) -> Attempt:
        attempt = Attempt(order, loop.process, loop.create_future())
        self.world.after(self.world.uniform(0.001, 0.02), lambda: self._enqueue(attempt))
        if self._duplicates and self.world.chance(self._duplicates):
            self.world.after(self.world.uniform(0, 8), lambda: self._enqueue(attempt))
        return attempt

    def _enqueue(self, attempt: Attempt) -> None:
        if self.lost:
            self._lose(attempt)
        elif not attempt.cancelled:
            self._queue.append(attempt)
            self.dispatch()

    def dispatch(self) -> None:
        while self._queue:
            fit = [node for node in self.nodes if self._takes_work(node)]
            if not fit:
                return
            attempt = self._queue.popleft()
            if not attempt.driver.dead and not attempt.cancelled:
                self._start(attempt, fit[self.world.random.randrange(len(fit))])

    def _takes_work(self, node: Node) -> bool:
        reached = node.alive and not node.frozen and not node.cut_from_ray
        return reached and not node.draining and not node.known_dead and node.free > 0

    def _start(self, attempt: Attempt, node: Node) -> None:
        node.free -= 1
        process = node.idle.pop() if node.idle else Process(self.world, node, "worker")
        order = attempt.order
        label = Label(order.key, order.attempt, order.driver, process)
        execution = Execution(attempt, node, process, label)
        attempt.executions.append(execution)
        node.executions[process] = execution

        def work() -> None:
            self.world.sleep(self.world.uniform(0.001, 0.03))
            outcome = worker.run_step(order, node.id)
            self.world.note("outcome", order.attempt, order.key[:8], outcome.state, outcome.cause, outcome.message)
            if outcome.state == "stopped":
                self.referee.on_left(label)
            del node.executions[process]
            node.free += 1
            node.idle.append(process)
            self._send(execution, lambda: self._deliver(attempt, outcome))
            self.world.after(0.001, self.dispatch)

        self.world.spawn(process, work, label)

    def _send(self, execution: Execution, call: Callable[[], None]) -> None:
        """A message from a node to a driver."""
        node = execution.node
        if node.known_dead:
            return
        if node.cut_from_ray:
            node.mail.append((execution, call))
        else:
            self.world.after(self.world.uniform(0.001, 0.02), call)

    def _deliver(self, attempt: Attempt, outcome: Outcome) -> None:
        if not attempt.driver.dead and not attempt.future.done():
            self.referee.on_outcome(attempt.order.attempt)
            attempt.future.set_result(outcome)

    # what goes wrong

    def crash_worker(self, process: Process) -> None:
        """One process dies; its raylet tells of it, and its slot is free again."""
        node = process.machine
        assert isinstance(node, Node)
        execution = node.executions.pop(process, None)
        if process in node.idle:
            node.idle.remove(process)
        self.world.note("crash of", process.name)
        self.world.kill(process)
        if execution is not None:
            node.free += 1
            died = Outcome("failed", "node", "its worker died")
            self._send(execution, lambda: self._deliver(execution.attempt, died))
            self.world.after(self.world.uniform(0.01, 0.5), self.dispatch)

    def crash_node(self, node: Node) -> None:
        """All of a machine dies; the head notices in its own time."""
        self.world.note("crash of", node.name)
        lost = self._lost_with(node)
        node.alive = False
        node.executions.clear()
        node.idle.clear()
        for process in list(node.processes.values()):
            self.world.kill(process)
        self.world.after(self.world.uniform(0.5, 25), lambda: self._tell_of(lost))
        self.on_crash(node)

    def _tell_of(self, lost: list[Execution]) -> None:
        """Of what was at work the head may say nothing for ever."""
        for execution in lost:
            if self.world.chance(self.tells_of_death):
                self._deliver(execution.attempt, Outcome("failed", "node", "its node died"))

    def boot(self, node: Node) -> None:
        self.world.note("boot of", node.name)
        node.alive, node.draining, node.known_dead, node.free = True, False, False, node.slots
        node.boots += 1
        self.world.after(0.0, self.dispatch)

    def suspect(self, node: Node) -> None:
        """The node went silent; before long the head takes it for dead, if it has not come back."""
        self.world.after(self.world.uniform(8, 27), lambda: self._give_up(node))

    def _give_up(self, node: Node) -> None:
        if node.alive and (node.frozen or node.cut_from_ray) and not node.known_dead:
            self.world.note("given up", node.name)
            node.known_dead = True
            self._tell_of(self._lost_with(node))

    def _lost_with(self, node: Node) -> list[Execution]:
        """What was at work on a node, or had ended there without a word."""
        unheard = [execution for execution, _ in node.mail]
        node.mail.clear()
        return unheard + list(node.executions.values())

    def back(self, node: Node) -> None:
        """The node is heard again: its raylet goes on, or learns that it was given up and ends itself."""
        if node.known_dead:
            self.world.after(self.world.uniform(0, 5), lambda: self._restart(node))
            return
        mail, node.mail = node.mail, []
        for _, call in mail:
            self.world.after(self.world.uniform(0.001, 0.1), call)
        self.world.after(0.0, self.dispatch)

    def _restart(self, node: Node) -> None:
        if node.alive and node.known_dead and not node.frozen and not node.cut_from_ray:
            self.crash_node(node)
            self.world.after(self.world.uniform(0.5, 5), lambda: self.boot(node))

    def lose_head(self) -> None:
        """The head is gone, and all that it ran; a fresh cluster comes up for the drivers that start next."""
        self.world.note("head lost")
        self.lost = True
        for attempt in [execution.attempt for node in self.nodes for execution in node.executions.values()]:
            self._lose(attempt)
        for attempt in self._queue:
            self._lose(attempt)
        self._queue.clear()

    def _lose(self, attempt: Attempt) -> None:
        if not attempt.driver.dead and not attempt.future.done():
            attempt.future.set_exception(ClusterUnreachable("Ray's head has not answered for 40 s"))

    def fresh(self) -> None:
        self.lost = False
        for node in self.nodes:
            if node.alive and not node.frozen and not node.cut_from_ray:
                self.crash_node(node)
                self.boot(node)

    # what drivers do

    def cancel(self, attempt: Attempt) -> None:
        attempt.cancelled = True
        self.referee.on_outcome(attempt.order.attempt)
        self.world.after(self.world.uniform(0.001, 0.05), lambda: self._cancelled(attempt))

    def _cancelled(self, attempt: Attempt) -> None:
        for execution in attempt.executions:
            node = execution.node
            if not node.cut_from_ray and node.executions.get(execution.process) is execution:
                self.crash_worker(execution.process)
        self._deliver(attempt, Outcome("failed", "preempted", "it was cancelled"))

    def end_job(self, driver: Process) -> None:
        """Ray ends what a driver that is gone had started, where it can."""
        for node in self.nodes:
            for process, execution in list(node.executions.items()):
                if execution.attempt.driver is driver and not node.cut_from_ray:
                    self.crash_worker(process)


class SimulatedExecutor:
    """What one driver has for `cluster.executor.RayExecutor`."""

    def __init__(self, fleet: Fleet, loop: Loop) -> None:
        self._fleet = fleet
        self._loop = loop

    def submit(self, order: Order) -> Any:
        if order.task.threads == 0:
            label = Label(order.key, order.attempt, order.driver, self._loop.process)
            running = self._loop.in_thread(lambda: worker.run_step(order), label)
            running.add_done_callback(lambda done: self._fleet.referee.on_outcome(order.attempt))
            return running
        return self._fleet.submit(order, self._loop)

    async def outcome(self, running: Any) -> Outcome:
        if self._fleet.lost:
            raise ClusterUnreachable("Ray's head has not answered for 40 s")
        return await (running if isinstance(running, asyncio.Future) else running.future)  # type: ignore[no-any-return]

    def kill(self, running: Any) -> None:
        if not isinstance(running, asyncio.Future):
            self._fleet.referee.on_kill(running.order)
            self._fleet.cancel(running)

    def draining(self) -> Collection[str]:
        return {node.id for node in self._fleet.nodes if node.draining}

    def machines(self) -> Sequence[placement.Machine]:
        well = [node for node in self._fleet.nodes if node.alive and not node.draining and not node.known_dead]
        return [placement.Machine({"CPU": node.slots}, {}, node.id) for node in well]
