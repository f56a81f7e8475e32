"""What goes wrong in a schedule, when, and how it heals again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tests.cluster.simulation.fleet import Execution, Node
from tests.cluster.simulation.simulation import Driver, Simulation
from tests.cluster.simulation.world import Machine, Process

GRAY = ("partition", "cut from ray", "freeze")
"""A node that is neither there nor gone."""
REQUESTS = 10
"""To the store, at most, between the moment when an attempt is asked to leave and its end."""
KINDS = (
    *GRAY,
    "worker crash",
    "node crash",
    "driver crash",
    "driver freeze",
    "driver cut off",
    "store cut off",
    "crash at a request",
    "drain",
    "stop",
    "damage",
    "clock",
    "head lost",
)


class Faults:
    """Lets faults happen to a simulation; each is drawn when it strikes, from what is there then."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._world = simulation.world
        self._random = simulation.world.random
        self.under_way = 0
        self.struck: list[tuple[str, float]] = []
        self.damaging = False
        self.when_over: Callable[[], None] = lambda: None
        self.on_gray: Callable[[Node], None] = lambda node: None
        self.on_heal: Callable[[Node], None] = lambda node: None

    def plan(self, kind: str, when: float) -> None:
        """A fault of a kind at a time; its healing is part of it."""
        self.under_way += 1
        if kind == "crash at a request":
            self._plan_crash_at_request()
        else:
            self._world.after(when, lambda: self._strike(kind))

    def _over(self, delay: float = 0.0) -> None:
        def over() -> None:
            self.under_way -= 1
            if not self.under_way:
                self.when_over()

        self._world.after(delay, over)

    def _strike(self, kind: str) -> None:
        self._world.note("FAULT", kind)
        self.struck.append((kind, self._world.now))
        strikes: dict[str, Callable[[], None]] = {
            "partition": lambda: self._gray(store=True, ray=True),
            "cut from ray": lambda: self._gray(store=False, ray=True),
            "freeze": lambda: self._gray(freeze=True),
            "worker crash": self._worker_crash,
            "node crash": self._node_crash,
            "driver crash": self._driver_crash,
            "driver freeze": self._driver_freeze,
            "driver cut off": self._driver_cut_off,
            "store cut off": self._store_cut_off,
            "drain": self._drain,
            "stop": self._stop,
            "damage": self._damage,
            "clock": self._clock,
            "head lost": self._head_lost,
        }
        strikes[kind]()

    def _node(self) -> Node | None:
        """A node at work, rather than an idle one."""
        well = [node for node in self._simulation.nodes if node.alive and not node.frozen and not node.cut_from_ray]
        busy = [node for node in well if node.executions]
        return self._random.choice(busy or well) if well else None

    def _driver(self) -> Driver:
        return self._random.choice(self._simulation.drivers)

    def _gray(self, store: bool = False, ray: bool = False, freeze: bool = False) -> None:
        node = self._node()
        if node is None:
            self._over()
            return
        fleet = self._simulation.fleet
        length = self._random.choice((3.0, 20.0, 60.0)) * self._world.uniform(0.5, 1.5)
        self._world.note("strikes", node.name, f"for {length:.1f} s")
        if store or freeze:  # else its steps go on undisturbed
            self.on_gray(node)
        node.cut_from_store = node.cut_from_store or store
        node.cut_from_ray = ray
        if freeze:
            self._world.freeze(node)
        fleet.suspect(node)

        def heal() -> None:
            self._world.note("healed", node.name)
            if freeze:
                self._world.thaw(node)
            if store:
                node.cut_from_store = self._simulation.referee.store_is_away
            if ray:
                node.cut_from_ray = False
            self.on_heal(node)
            fleet.back(node)
            self._over(10)

        self._world.after(length, heal)

    def _worker_crash(self) -> None:
        node = self._node()
        busy = [process for node in self._simulation.nodes for process in node.executions if not node.frozen]
        if node is not None and busy:
            self._simulation.fleet.crash_worker(self._random.choice(busy))
        self._over()

    def _node_crash(self) -> None:
        node = self._node()
        if node is not None:
            self._crash_node(node)
        else:
            self._over()

    def _crash_node(self, node: Node) -> None:
        fleet = self._simulation.fleet
        fleet.crash_node(node)

        def boot() -> None:
            fleet.boot(node)
            self._over(25)

        self._world.after(self._world.uniform(1, 20), boot)

    def _driver_crash(self) -> None:
        self._driver().crash()
        self._over(8)

    def _driver_freeze(self) -> None:
        machine = self._driver().machine
        if isinstance(machine, Node) or machine.frozen:
            self._over()
            return
        self._world.freeze(machine)

        def thaw() -> None:
            self._world.thaw(machine)
            self._over()

        self._world.after(self._random.choice((5.0, 40.0)), thaw)

    def _driver_cut_off(self) -> None:
        machine = self._driver().machine
        machine.cut_from_store = True
        self._reconnect_later([machine])

    def _store_cut_off(self) -> None:
        machines = [*self._simulation.nodes, *(driver.machine for driver in self._simulation.drivers)]
        for machine in machines:
            machine.cut_from_store = True
        self._simulation.referee.on_store_away(True)
        self._reconnect_later(machines)

    def _reconnect_later(self, machines: list[Machine]) -> None:
        def reconnect() -> None:
            referee = self._simulation.referee
            if len(machines) > 1:
                referee.on_store_away(False)
            for machine in machines:
                machine.cut_from_store = referee.store_is_away
            self._over()

        self._world.after(self._random.choice((2.0, 12.0, 22.0, 45.0)), reconnect)

    def _plan_crash_at_request(self) -> None:
        """Kills whoever makes a request of some number, just before its commit or just after."""
        simulation = self._simulation
        number = self._random.randint(1, 150)
        after = self._random.random() < 0.5

        def strike(process: Process, committed: bool) -> None:
            if committed is not after:
                return
            struck.append(number)
            self._world.note("FAULT", "crash at request", number)
            self.struck.append(("crash at a request", self._world.now))
            driver = next((driver for driver in simulation.drivers if driver.process is process), None)
            if driver is not None:
                driver.crash()
            else:
                simulation.fleet.crash_worker(process)
            self._over(8)

        def too_late() -> None:
            simulation.disk.at_request.pop(number, None)
            if not struck:
                self._over()

        struck: list[int] = []
        simulation.disk.at_request[number] = strike
        self._world.after(60, too_late)

    def _drain(self) -> None:
        node = self._node()
        if node is None or node.draining:
            self._over()
            return
        node.draining = True
        self._world.note("draining", node.name)
        terms = self._simulation.terms
        self._expect_to_leave(list(node.executions.values()), terms.ttl / 3 + terms.beat)

        def gone() -> None:
            if node.alive and node.draining:
                self._crash_node(node)
            else:
                self._over()

        self._world.after(self._world.uniform(8, 40), gone)

    def _stop(self) -> None:
        driver = self._driver()
        asked = [
            execution
            for node in self._simulation.nodes
            for execution in node.executions.values()
            if execution.attempt.driver is driver.process
        ]
        driver.stop()
        self._expect_to_leave(asked, self._simulation.terms.beat)
        self._over(15)

    def _expect_to_leave(self, asked: list[Execution], within: float) -> None:
        """Attempts end by themselves, within seconds and a turn of their work, if nothing else goes wrong meanwhile."""
        disk, strikes = self._simulation.disk, len(self.struck)
        if not disk.fair and (disk.weather.errors or disk.weather.stalls):
            return

        def look(execution: Execution) -> None:
            stays = execution.node.executions.get(execution.process) is execution
            if stays and len(self.struck) == strikes and self._is_well(execution):
                self._simulation.referee.violate(f"{execution.attempt.order.attempt} does not leave as it was asked to")

        for execution in filter(self._is_well, asked):
            task: Any = execution.attempt.order.task
            patience = within + task.pause + REQUESTS * disk.weather.slowest + 1
            self._world.after(patience, partial(look, execution))

    def _is_well(self, execution: Execution) -> bool:
        """Whether an attempt and its driver hear each other."""
        node, attempt = execution.node, execution.attempt
        reached = node.alive and not (node.frozen or node.cut_from_ray or node.cut_from_store or node.known_dead)
        machine = attempt.driver.machine
        watched = not (attempt.driver.dead or attempt.cancelled or attempt.future.done())
        return reached and watched and not (machine.frozen or machine.cut_from_store)

    def _damage(self) -> None:
        self.damaging = True
        disk = self._simulation.disk
        names = [
            path
            for path in sorted(disk.objects)
            if path.startswith("steps/") and "failure-" not in path and path not in disk.referee.damaged
        ]
        if names:
            disk.damage(self._random.choice(names))
        self._over()

    def _clock(self) -> None:
        machines = [*self._simulation.nodes, *(driver.machine for driver in self._simulation.drivers)]
        self._random.choice(machines).skew += self._random.choice((-3600.0, 3600.0))
        self._over()

    def _head_lost(self) -> None:
        self._simulation.fleet.lose_head()
        self._over(10)
