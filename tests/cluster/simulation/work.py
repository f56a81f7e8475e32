"""Small tasks and random workflows whose right results are known without running them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from cluster.flow import Flow, Handle
from cluster.order import STATE
from cluster.step import Runnable

if TYPE_CHECKING:
    from tests.cluster.simulation.simulation import Simulation

HERE: list[Simulation] = []
"""The world that runs; tasks are recorded, so they cannot carry it."""


@dataclass
class Made:
    metrics: dict[str, Any]
    files: dict[str, bytes]


@dataclass
class Work:
    """Folds its inputs into a number, then turns it over `turns` times; its state can be saved after each."""

    number: int
    turns: int
    pause: float = field(metadata={"identity": False})
    """Seconds a turn."""
    fails: bool = False
    threads: int = 1
    gpus: float = 0.0
    kind: str = "work"

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind, "number": self.number, "turns": self.turns, "fails": self.fails}

    def run(self, context: Any, **inputs: Any) -> Made:
        world, referee, objects = HERE[-1].world, HERE[-1].referee, HERE[-1].disk.objects
        label = world.strand.label
        referee.on_compute(label.key, {name: step.key for name, step in inputs.items()})
        world.note("computes", label.key[:8])
        kept = referee.kept_for(objects, label)
        state = context.saved()
        if state is not None:
            first, value = map(int, state.split())
        else:
            first, value = 0, fold(self.number, {name: int(step.read("value")) for name, step in inputs.items()})
        referee.on_resume(objects, label, kept, first)
        for turn in range(first, self.turns):
            world.sleep(self.pause)
            value = turned(value, turn)
            label.done = turn + 1
            context.progress(turn + 1, self.turns)
            if context.should_save():
                context.save(f"{turn + 1} {value}".encode())
        if self.fails:
            raise ValueError("a mistake in the task")
        return self.made(value)

    def made(self, value: int) -> Made:
        return Made({"value": value}, {"value": str(value).encode(), STATE: f"{self.turns} {value}".encode()})


def fold(number: int, inputs: Mapping[str, int]) -> int:
    value = number
    for name in sorted(inputs):
        value = (value * 1_000_003 + inputs[name]) % 2_147_483_647
    return value


def turned(value: int, turn: int) -> int:
    return (value * 48_271 + turn) % 2_147_483_647


def expected(handle: Handle, memory: dict[str, Any]) -> tuple[dict[str, Any], dict[str, bytes], dict[str, str]] | None:
    """Metrics, files and inputs of a step without a fault; None if it, or what feeds it, fails by itself."""
    if handle.key in memory:
        return memory[handle.key]  # type: ignore[no-any-return]
    task: Any = handle.task
    found = {name: expected(upstream, memory) for name, upstream in handle.inputs.items()}
    if task.fails or None in found.values():
        memory[handle.key] = None
        return None
    value = fold(task.number, {name: right[0]["value"] for name, right in found.items() if right is not None})
    for turn in range(task.turns):
        value = turned(value, turn)
    made = task.made(value)
    right = (made.metrics, made.files, {name: upstream.key for name, upstream in handle.inputs.items()})
    memory[handle.key] = right
    return right


@dataclass(frozen=True)
class Piece:
    """One step of a random workflow and how it is asked for."""

    task: Work
    feeds: tuple[int, ...]
    """Pieces before it that feed it."""
    awaited: bool
    """Whether the workflow looks at its value before it goes on: if odd, it asks for one step more."""


@dataclass(frozen=True)
class Workflow:
    """3 to 8 steps: chains, fans and loops whose length depends on results."""

    pieces: tuple[Piece, ...]

    @classmethod
    def draw(cls, random: Random, failing: bool) -> Workflow:
        count = random.randint(3, 7)
        pieces = []
        for index in range(count):
            shape = random.random()
            if index == 0 or shape < 0.15:
                feeds: tuple[int, ...] = ()
            elif shape < 0.55:
                feeds = (index - 1,)
            else:
                feeds = tuple(sorted(random.sample(range(index), min(index, random.randint(1, 3)))))
            pieces.append(Piece(_draw_task(random, index), feeds, awaited=random.random() < 0.2 and not failing))
        if failing:
            index = random.randrange(count)
            old = pieces[index]
            task = Work(old.task.number, old.task.turns, old.task.pause, fails=True)
            pieces[index] = Piece(task, old.feeds, awaited=False)
        return cls(tuple(pieces))

    async def run(self, flow: Flow) -> None:
        flow = flow.continuing(shorter)
        handles: list[Handle] = []
        more: list[Handle] = []
        for piece in self.pieces:
            feeds = {f"x{index}": handles[index] for index in piece.feeds}
            handle = flow.step(piece.task, **feeds)
            handles.append(handle)
            if piece.awaited and not piece.task.fails:
                value = (await handle)["value"]
                if value % 2:
                    more.append(flow.step(Work(value % 1000, 1, 0.2), x=handle))
        await flow.together(*handles, *more)


def _draw_task(random: Random, index: int) -> Work:
    size = random.random()
    if size < 0.6:
        return Work(index + 1, random.randint(1, 3), round(random.uniform(0.01, 0.4), 3))
    if size < 0.87:
        return Work(index + 1, 4, round(random.uniform(0.3, 1.2), 3))
    if size < 0.92:
        return Work(index + 1, 1, 0.0, threads=0)
    return Work(index + 1, random.choice((6, 8)), round(random.uniform(1.5, 4.0), 3))


def shorter(task: Runnable) -> Work | None:
    """Half the turns lead halfway, to the very bytes."""
    if isinstance(task, Work) and task.turns == 8 and not task.fails:
        return Work(task.number, 4, task.pause)
    return None
