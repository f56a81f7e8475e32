"""One schedule from a seed: a workflow, its drivers, a cluster, what goes wrong, and the verdict."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cluster import engine, ledger, owner, placement, store, watch, worker
from cluster.engine import Engine, Stopped
from cluster.failures import StepFailed
from cluster.flow import Flow, Handle
from cluster.order import Terms
from cluster.owner import Owner
from cluster.session import ClusterUnreachable
from cluster.store import Store, StoreError
from tests.cluster.simulation.clocks import Datetime, Loop, Threading, Time, to_thread
from tests.cluster.simulation.disk import Backend, Disk, Weather
from tests.cluster.simulation.fleet import Fleet, Node, SimulatedExecutor
from tests.cluster.simulation.referee import Referee
from tests.cluster.simulation.work import HERE, Workflow
from tests.cluster.simulation.world import Machine, Process, World

URL = "simulated"


class Simulation:
    """A world with its disk, its cluster and its drivers."""

    def __init__(
        self,
        seed: int,
        nodes: int = 2,
        slots: int = 2,
        weather: Weather | None = None,
        duplicates: float = 0.0,
        tracing: bool = False,
        terms: Terms | None = None,
        referee: type[Referee] = Referee,
    ) -> None:
        self.seed = seed
        self.collecting = False
        """Whether Python's garbage is collected meanwhile: handles live in weak maps, and when they go must not depend
        on that."""
        self.terms = terms or Terms()
        self.world = World(seed, tracing)
        self.referee = referee(self.world, self.terms.ttl)
        self.disk = Disk(self.world, self.referee, weather or Weather())
        self.nodes = [Node(f"node{number}", slots) for number in range(nodes)]
        self.fleet = Fleet(self.world, self.referee, self.nodes, duplicates)
        self.fleet.on_crash = self._on_crash
        self.drivers: list[Driver] = []
        self.store = Store(URL, Backend(self.disk))

    def start(self, workflow: Workflow, machine: Machine, after: float = 0.0, verify: bool = False) -> Driver:
        driver = Driver(self, workflow, machine, verify)
        self.drivers.append(driver)
        self.world.after(after, driver.start)
        return driver

    def _on_crash(self, node: Node) -> None:
        for driver in self.drivers:
            if driver.machine is node:
                driver.noticed()

    def run(self, deadline: float) -> str:
        """Lets it happen, in virtual seconds; says how it ended."""
        with patched(self):
            collecting = gc.isenabled()
            if not self.collecting:
                gc.disable()
            try:
                ended = self.world.run(deadline)
            finally:
                self.world.close()
                if collecting:
                    gc.enable()
        if self.world.error is not None:
            raise self.world.error
        if ended != "finished" and not self.referee.violations:
            waiting = [driver.process.name for driver in self.drivers if not driver.done and driver.process is not None]
            self.referee.violate(f"it does not end: {ended} at {self.world.now:.1f} s, waiting: {waiting}")
        return ended


class Driver:
    """A user who starts the same command until it is through."""

    def __init__(self, simulation: Simulation, workflow: Workflow, machine: Machine, verify: bool) -> None:
        self.simulation = simulation
        self.workflow = workflow
        self.machine = machine
        self.verify = verify
        self.process: Process | None = None
        self.loop: Loop | None = None
        self.engine: Engine | None = None
        self.done = False
        self.starts = 0
        self.failed = ""
        self.on_event: Callable[[str, Handle], None] | None = None
        self.when_done: Callable[[], None] = lambda: None

    def start(self) -> None:
        world, fleet = self.simulation.world, self.simulation.fleet
        if self.done or (self.process is not None and not self.process.dead):
            return
        if self.machine.frozen or (isinstance(self.machine, Node) and not self.machine.alive) or fleet.lost:
            if fleet.lost:
                fleet.fresh()
            world.after(1.0, self.start)
            return
        self.starts += 1
        self.process = Process(world, self.machine, "driver")
        self.loop = Loop(world, self.process)
        world.note("start of", self.process.name, "on", self.machine.name)
        self.loop.call_soon(self._begin)

    def _begin(self) -> None:
        assert self.loop is not None
        simulation = self.simulation
        executor = SimulatedExecutor(simulation.fleet, self.loop)
        self.engine = Engine(simulation.store, executor, self._hear, simulation.terms, self.verify)
        self._main = asyncio.ensure_future(self._drive(self.engine))

    async def _drive(self, running: Engine) -> None:
        ended = "done"
        assert self.process is not None
        started = self.process.name
        try:
            await self.workflow.run(Flow(running))
        except Stopped:
            await self._stopper
            ended = "stopped"
        except StepFailed as failure:
            causes = self.simulation.referee.causes_of(started)
            ended = "failed" if causes == {"user"} else f"gave up: {failure}"
        except (StoreError, ClusterUnreachable) as error:
            ended = f"gave up: {error}"
        except Exception as error:  # a mistake in the code under test: nothing of it may pass for an ending
            self.simulation.world.error = error
        self._end(ended)

    def _end(self, ended: str) -> None:
        world, process = self.simulation.world, self.process
        assert process is not None
        world.note("end of", process.name, ended)
        self.done = ended in ("done", "failed")
        self.failed = "" if self.done else ended
        self._gone(process)
        if self.done:
            self.when_done()
        else:
            world.after(world.uniform(0.5, 5), self.start)

    def _gone(self, process: Process) -> None:
        world = self.simulation.world
        world.kill(process)
        if world.chance(0.8):
            world.after(world.uniform(0.1, 5), lambda: self.simulation.fleet.end_job(process))

    def crash(self) -> None:
        """Dies, and is started again after a while."""
        if self.process is None or self.process.dead or self.done:
            return
        world = self.simulation.world
        world.note("crash of", self.process.name)
        self._gone(self.process)
        world.after(world.uniform(0.5, 8), self.start)

    def noticed(self) -> None:
        """Its machine went down with it."""
        if self.process is not None and self.process.dead and not self.done:
            self.simulation.world.after(self.simulation.world.uniform(0.5, 8), self.start)

    def stop(self) -> None:
        """A signal asks it to stop; the user starts it again later."""
        if self.process is None or self.process.dead or self.done or self.engine is None or self.loop is None:
            return
        self.simulation.world.note("stop of", self.process.name)
        self.simulation.referee.stopping.add(self.engine.driver)
        self.loop.call_soon(self._stop, self.engine)

    def _stop(self, engine: Engine) -> None:
        self._stopper = asyncio.ensure_future(engine.stop())

    def _hear(self, state: str, handle: Handle, **news: Any) -> None:
        assert self.process is not None
        told = {name: value for name, value in news.items() if name != "published"}
        self.simulation.world.note(state, handle.key[:8], *told.values())
        self.simulation.referee.on_tell(self.process.name, state, handle, news)
        if self.on_event is not None:
            self.on_event(state, handle)


@dataclass
class _Psutil:
    """What `cluster.owner` asks of psutil, answered from the processes of the machine."""

    world: World
    STATUS_ZOMBIE: str = "zombie"
    NoSuchProcess: type[Exception] = field(default=LookupError)

    def Process(self, pid: int) -> Any:  # noqa: N802 - as in psutil
        process = self.world.process
        assert process is not None
        found = process.machine.processes.get(pid)
        if found is None:
            raise LookupError(pid)
        return types.SimpleNamespace(create_time=lambda: found.started, status=lambda: "running")


class Unmetered:
    """In place of the meter: this computer's memory is nothing to the simulated one."""

    def __init__(self, gpus: float, gpu_type: str = "") -> None:
        pass

    def record(self) -> dict[str, Any]:
        return {}


@contextmanager
def patched(simulation: Simulation) -> Iterator[None]:
    """Puts the simulated clock, threads, processes and store in place of the real ones."""
    world = simulation.world
    time = Time(world)
    names = iter(range(1, 1_000_000))

    def me(cls: type[Owner]) -> Owner:
        process = world.process
        assert process is not None
        return Owner(process.machine.name, process.pid, process.started)

    def host() -> str:
        assert world.process is not None
        return world.process.machine.name

    secrets = types.SimpleNamespace(token_hex=lambda size: f"d{next(names):x}")
    replaced: list[tuple[Any, str, Any]] = [
        *((module, "time", time) for module in (engine, ledger, placement, store, watch, worker)),
        (engine, "secrets", secrets),
        (worker, "threading", Threading(world)),
        (worker, "sys", types.SimpleNamespace(modules={})),
        (worker, "_open", lambda url: simulation.store),
        (worker, "Meter", Unmetered),
        (worker, "_environment", lambda: {"python": "simulated"}),
        (ledger, "datetime", Datetime(time)),
        (owner, "psutil", _Psutil(world)),
        (owner, "_this_host", host),
        (owner, "_started", lambda pid: owner.psutil.Process(pid).create_time()),
        (Owner, "me", classmethod(me)),
        (asyncio, "to_thread", to_thread),
    ]
    before = [(where, name, vars(where)[name]) for where, name, _ in replaced]
    for where, name, fake in replaced:
        setattr(where, name, fake)
    HERE.append(simulation)
    try:
        yield
    finally:
        HERE.pop()
        for where, name, real in before:
            setattr(where, name, real)


def digest_of(trace: Sequence[str]) -> str:
    """One hash over everything that happened."""
    return hashlib.sha256("\n".join(trace).encode()).hexdigest()
