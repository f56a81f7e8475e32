"""A virtual clock, one heap of events, and threads of which one runs at a time.

A strand is a thread of a simulated process. It runs until it sleeps or waits; then it takes the next events off the
heap itself and wakes the strand whose turn it is, so that a switch costs one hand-over, and none if its own turn comes.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any

EPOCH = 1_800_000_000.0


class Died(BaseException):
    """Unwinds the strands of a process that is gone; not an `Exception`, so that nothing carries on."""


class Machine:
    """A host: its processes share a clock, a fate and a network."""

    def __init__(self, name: str, skew: float = 0.0) -> None:
        self.name = name
        self.skew = skew
        """Seconds by which its wall clock is wrong."""
        self.frozen = False
        self.cut_from_store = False
        self.cut_from_ray = False
        self.processes: dict[int, Process] = {}
        self.held: list[tuple[Any, Any, Any]] = []
        """Events that came due while it was frozen."""


class Process:
    """Something that can be killed as a whole."""

    def __init__(self, world: World, machine: Machine, name: str) -> None:
        world.pids += 1
        self.pid = world.pids
        self.machine = machine
        self.name = f"{name}{self.pid}"
        self.started = world.now
        self.dead = False
        self.strands: dict[Strand, None] = {}
        machine.processes[self.pid] = self
        world.alive[self.pid] = self


class Strand:
    """A thread of a simulated process."""

    __slots__ = ("carrier", "done", "label", "process", "target", "turn", "waiters")

    def __init__(self, process: Process | None, target: Callable[[], None], label: Any) -> None:
        self.process = process
        self.target = target
        self.label = label
        """On whose behalf it runs: an attempt, or nobody; inherited by the strands that it starts."""
        self.turn = 0
        self.carrier: Carrier | None = None
        self.done = False
        self.waiters: list[tuple[Strand, int]] = []


class Carrier:
    """A thread of this computer that runs strands, one after the other, for all worlds of its process."""

    idle: list[Carrier] = []  # noqa: RUF012 - one stock for all

    def __init__(self) -> None:
        self.lock = _thread.allocate_lock()
        self.lock.acquire()
        self.strand: Strand | None = None
        self.world: World | None = None

    @classmethod
    def take(cls) -> Carrier:
        if cls.idle:
            return cls.idle.pop()
        carrier = cls()
        threading.Thread(target=carrier.carry, name="strand", daemon=True).start()
        return carrier

    def carry(self) -> None:
        while True:
            self.lock.acquire()
            assert self.strand is not None
            assert self.world is not None
            world, strand = self.world, self.strand
            world.begin(strand)
            Carrier.idle.append(self)  # nobody else runs now
            world.hand_over(world.advance())


class World:
    """Time, chance, and whose turn it is."""

    def __init__(self, seed: int, tracing: bool = False) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.pids = 0
        self.alive: dict[int, Process] = {}
        self.deadline = float("inf")
        self.ended = ""
        """Why the world stopped: `finished`, `deadline`, `nothing left to happen` or an error."""
        self.strand = Strand(None, lambda: None, None)
        self._main = self.strand
        self._main.carrier = Carrier()
        self._heap: list[tuple[float, float, int, Process | None, Any, Any]] = []
        self._count = 0
        self._closing = False
        self._live = 0
        self.error: BaseException | None = None
        self.tracing = tracing
        self.trace: list[str] = []

    # time and chance

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.random.random()

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def after(self, delay: float, call: Callable[[], None], process: Process | None = None) -> None:
        """Calls something later; not if the process is dead by then, and later still while it is frozen."""
        self._push(delay, process, call, None)

    def _push(self, delay: float, process: Process | None, call: Any, turn: Any) -> None:
        self._count += 1
        heappush(self._heap, (self.now + delay, self.random.random(), self._count, process, call, turn))

    def note(self, what: str, *about: Any) -> None:
        """A line of the trace, put together only when somebody will read it."""
        if self.tracing:
            process = self.strand.process
            who = process.name if process is not None else "world"
            self.trace.append(f"{self.now:10.4f} {who:12} {what} {' '.join(map(str, about))}".rstrip())

    # strands

    @property
    def process(self) -> Process | None:
        """The process whose code is running."""
        return self.strand.process

    def spawn(self, process: Process, target: Callable[[], None], label: Any = None) -> Strand:
        strand = Strand(process, target, label)
        process.strands[strand] = None
        self._live += 1
        self._push(0.0, process, strand, 0)
        return strand

    def sleep(self, delay: float) -> None:
        strand = self.strand
        if strand.process is not None and strand.process.dead:
            raise Died
        self._push(delay, strand.process, strand, strand.turn)
        self._park(strand)

    def wait(self, waiters: list[tuple[Strand, int]], timeout: float | None = None) -> None:
        """Sleeps until somebody wakes these waiters, or until the time is over."""
        strand = self.strand
        if strand.process is not None and strand.process.dead:
            raise Died
        waiters.append((strand, strand.turn))
        if timeout is not None:
            self._push(timeout, strand.process, strand, strand.turn)
        self._park(strand)

    def wake(self, waiters: list[tuple[Strand, int]]) -> None:
        for strand, turn in waiters:
            self._push(0.0, strand.process, strand, turn)
        waiters.clear()

    def _park(self, strand: Strand) -> None:
        assert strand.carrier is not None
        turned = self.advance()
        if turned is not strand:
            self.hand_over(turned)
            strand.carrier.lock.acquire()
        strand.turn += 1
        self.strand = strand
        if strand.process is not None and strand.process.dead:
            raise Died

    def begin(self, strand: Strand) -> None:
        """Runs a strand from its beginning to its end, on the thread that calls this."""
        self.strand = strand
        strand.turn += 1
        process = strand.process
        assert process is not None
        try:
            if not process.dead:
                strand.target()
        except Died:
            pass
        except BaseException as error:
            self.error = self.error or error
        strand.done = True
        self._live -= 1
        del process.strands[strand]
        self.wake(strand.waiters)

    def hand_over(self, strand: Strand) -> None:
        """Lets another strand run; the caller then waits for its own turn."""
        carrier = strand.carrier
        if carrier is None:
            carrier = strand.carrier = Carrier.take()
            carrier.strand, carrier.world = strand, self
        carrier.lock.release()

    def advance(self) -> Strand:
        """Lets events happen until it is a strand's turn."""
        heap = self._heap
        while not self._is_over():
            now, _, _, process, call, turn = heappop(heap)
            if now > self.deadline and not self._closing:
                return self._end("deadline")
            if process is not None:
                if process.dead:
                    continue
                if process.machine.frozen:
                    process.machine.held.append((process, call, turn))
                    continue
            self.now = now
            if turn is None:
                self._happen(call)
            elif call.turn == turn and not call.done:
                return call  # type: ignore[no-any-return]
        return self._main

    def _is_over(self) -> bool:
        if self._closing:
            return not self._live
        if self.error is not None:
            self._end("an error in the simulation")
        elif not self._heap:
            self._end("nothing left to happen")
        return bool(self.ended)

    def _happen(self, call: Callable[[], None]) -> None:
        """An event of the world itself, or of a driver's loop."""
        if self._closing:
            return
        self.strand = self._main
        try:
            call()
        except BaseException as error:
            self.error = error

    def _end(self, why: str) -> Strand:
        self.ended = self.ended or why
        return self._main

    # what happens to processes and machines

    def kill(self, process: Process) -> None:
        """Ends a process: what it waits for does not matter any more."""
        if process.dead:
            return
        process.dead = True
        del process.machine.processes[process.pid]
        del self.alive[process.pid]
        for strand in process.strands:
            self._push(0.0, None, strand, strand.turn)

    def freeze(self, machine: Machine) -> None:
        machine.frozen = True

    def thaw(self, machine: Machine) -> None:
        machine.frozen = False
        held, machine.held = machine.held, []
        for process, call, turn in held:
            self._push(self.uniform(0, 0.01), process, call, turn)

    # the whole

    def run(self, deadline: float) -> str:
        """Lets the world go on until `finish` is called or nothing more can happen; says which."""
        self.deadline = deadline
        self.strand = self._main
        self._park(self._main)
        return self.ended

    def finish(self) -> None:
        self._end("finished")

    def close(self) -> None:
        """Unwinds what is left, so that its threads are free for the next world."""
        self._closing = True
        for process in list(self.alive.values()):
            self.kill(process)
        self.strand = self._main
        self._park(self._main)
