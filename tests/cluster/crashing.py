"""Kills a driver at each call of the store in turn, starts it again, and tells what was left to do and what came out.

As a program, `python -m tests.cluster.crashing FOLDER all|driver`, it is a warm parent of one thread that forks each
driver. `all`: workers are threads of the driver and die with it. `driver`: they are a process of their own, as Ray's
are, and go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cluster.engine import Engine
from cluster.flow import Flow, Handle
from cluster.order import Order, Outcome, Terms
from cluster.plan import make_plan
from cluster.runs import EventLog, Run, events_of, finished_steps, write_plan
from cluster.store import Store
from cluster.worker import run_step
from tests.cluster.driving import ThreadExecutor
from tests.cluster.toys import Add, Count

TERMS = Terms(beat=0.05, ttl=2.0, checkpoint=0.02, farewell=1.0)
CALLS = ("put", "create", "get", "look", "delete", "entries")
STEPS = 5
RUN = "crashing"


async def work(flow: Flow, trace: str) -> int:
    """A step with checkpoints, two side by side, one that joins them, and one more if the sum is odd."""
    base = flow.step(Count(3, 0.012, f"{trace}.count"))
    sides = [flow.step(Add(number, trace), x=base) for number in (1, 2)]
    total = flow.step(Add(10, trace), x=sides[0], y=sides[1])
    value = int((await total)["sum"])
    if value % 2:
        value = int((await flow.step(Add(100, trace), x=total))["sum"])
    return value


SUM = 100 + 10 + (3 + 1) + (3 + 2)


class Counting:
    """Counts the calls of this process's store, and kills the process at one of them."""

    def __init__(self, at: int, after: bool) -> None:
        self.calls = 0
        self._at, self._after = at, after
        self._lock = threading.Lock()
        for name in CALLS:
            setattr(Store, name, self._counted(getattr(Store, name)))

    def _counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(store: Store, *args: Any) -> Any:
            with self._lock:
                self.calls += 1
                mine = self.calls == self._at
            if mine and not self._after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(store, *args)
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call


class Remote:
    """Attempts in another process, which outlives this one."""

    def __init__(self, workers: Connection) -> None:
        self._workers = workers
        self._waiting: dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Future[Outcome]]] = {}
        threading.Thread(target=self._hear, daemon=True).start()

    def submit(self, order: Order) -> Any:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._waiting[order.attempt] = (loop, future)
        self._workers.send(order)
        return future

    def _hear(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                attempt, outcome = self._workers.recv()
                loop, future = self._waiting.pop(attempt)
                loop.call_soon_threadsafe(future.set_result, outcome)

    async def outcome(self, running: Any) -> Outcome:
        return await running  # type: ignore[no-any-return]

    def draining(self) -> frozenset[str]:
        return frozenset()

    def machines(self) -> list[Any]:
        return []

    def kill(self, running: Any) -> None:
        raise AssertionError("no attempt hangs here")


def serve(driver: Connection) -> None:
    """A worker process: each order in a thread, to its end, whether or not the driver still lives."""
    lock = threading.Lock()
    threads = []

    def run(order: Order) -> None:
        outcome = run_step(order)
        with lock, contextlib.suppress(OSError):
            driver.send((order.attempt, outcome))

    with contextlib.suppress(EOFError, OSError):
        while True:
            threads.append(threading.Thread(target=run, args=(driver.recv(),)))
            threads[-1].start()
    for thread in threads:
        thread.join()


def drive(folder: Path, executor: Any) -> int:
    """What `hedgerow run` does, from the plan to the last event; the sum that came out."""
    store = Store.open(str(folder / "store"))
    trace = str(folder / "trace")
    plan = asyncio.run(make_plan(store, lambda flow: work(flow, trace)))
    run = Run.open(store, RUN, {"name": RUN, "recipe": {"steps": STEPS}})
    write_plan(store, run.id, plan.records())
    log: EventLog | None = None

    def tell(state: str, handle: Handle, **news: Any) -> None:
        assert log is not None
        log.write("step", state=state, key=handle.key, kind=handle.task.kind, at=dict(handle.at))

    engine = Engine(store, executor, tell, TERMS)
    log = EventLog(store, run.id, engine.driver)
    log.write("run", state="started", driver=engine.driver)
    total = asyncio.run(work(Flow(engine), trace))
    log.write("run", state="ended", driver=engine.driver, code=0)
    log.close()
    return total


def forked(child: Callable[[], None]) -> int:
    """Runs something in a child of this process; gives its number."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        child()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def start(folder: Path, mode: str, at: int = 0, after: bool = False) -> list[int]:
    """Forks a driver that dies at a call of its store, and its workers; the driver's number comes first."""
    ours, theirs = Pipe()

    def driver() -> None:
        theirs.close()
        counting = Counting(at, after)
        total = drive(folder, ThreadExecutor() if mode == "all" else Remote(ours))
        (folder / "ended").write_text(json.dumps({"sum": total, "calls": counting.calls}))

    def workers() -> None:
        ours.close()
        serve(theirs)

    children = [forked(driver)]
    if mode == "driver":
        children.append(forked(workers))
    ours.close()
    theirs.close()
    return children


def manifests(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in (folder / "store").glob("steps/*/*/manifest.json")}


def computed(folder: Path) -> int:
    """How often a step that adds was begun."""
    adds = (folder / "trace").read_text().splitlines() if (folder / "trace").exists() else []
    return len(adds)


def counts(folder: Path) -> Counter[int]:
    """How often each turn of the step that counts was made."""
    trace = folder / "trace.count"
    lines = trace.read_text().splitlines() if trace.exists() else []
    return Counter(int(line.split()[1]) for line in lines)


def tell_of(folder: Path) -> dict[str, Any]:
    """What the store holds after the restart, read in a child: this process's store must stay cold to be forked."""

    def look() -> None:
        store = Store.open(str(folder / "store"))
        finished = finished_steps(store, RUN)
        states = [event.get("state") for event in events_of(store, RUN)]
        told = {
            "results": sorted(json.dumps([step.kind, dict(step.metrics)]) for step in finished),
            "files": sorted(step.step.read("sum.txt").decode() for step in finished),
            "aside": len(list(store.paths("set-aside"))),
            "checkpoints": len([path for path in store.paths("steps") if path.endswith("/checkpoint")]),
            "ends": states.count("ended"),
        }
        (folder / "told").write_text(json.dumps(told))

    os.waitpid(forked(look), 0)
    return dict(json.loads((folder / "told").read_text()))


def crash(folder: Path, mode: str, at: int, after: bool) -> dict[str, Any]:
    """One crash point: the driver dies there, and is started again at once."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    first = start(folder, mode, at, after)
    _, status = os.waitpid(first[0], 0)
    before = manifests(folder)
    second = start(folder, mode)
    _, again = os.waitpid(second[0], 0)
    for worker in first[1:] + second[1:]:
        os.waitpid(worker, 0)
    now = manifests(folder)
    return {
        "at": at,
        "after": after,
        "killed": os.WIFSIGNALED(status),
        "restarted": os.waitstatus_to_exitcode(again),
        "kept": all(now.get(key) == data for key, data in before.items()),
        "finished": len(before),
        "begun": computed(folder),
        "recounted": sum(counts(folder).values()) - len(counts(folder)),
        **json.loads((folder / "ended").read_text()),
        **tell_of(folder),
    }


def main() -> int:
    folder, mode = Path(sys.argv[1]), sys.argv[2]
    point, after = 1, False
    while True:
        told = crash(folder / "point", mode, point, after)
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        if not told["killed"]:
            return 0
        point, after = (point, True) if not after else (point + 1, False)


if __name__ == "__main__":
    sys.exit(main())
