"""What happens in a worker: take the lease, run the task, publish."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

from cluster.failures import cause_of
from cluster.ledger import Damaged, Fenced, Lease, Ledger, folder_of
from cluster.meter import Meter
from cluster.order import STATE, Order, Outcome, is_asked_to_leave
from cluster.store import Store, StoreError


class Asked(BaseException):
    """Ends a task that was asked to leave and has saved its state; no `Exception`, so that no task swallows it."""


def run_step(
    order: Order,
    node: str = "",
    gpu_type: str = "",
    beside: Iterable[str] = (),
    compute: Callable[..., Any] | None = None,
) -> Outcome:
    """Runs one attempt. Never raises: whatever goes wrong is returned as an outcome.

    Args:
        order: the attempt.
        node: the name of the node that it runs on, for the driver to know whom a leaving node takes along.
        gpu_type: what that node calls its GPUs, for the memory that the step takes of them.
        beside: the names of the other nodes that the attempt lives on.
        compute: what is called in place of the task's `run`.
    """
    where = {"node": node, **({"beside": list(beside)} if beside else {})}
    return told(order, lambda: _run_leased(order, where, gpu_type, compute or order.task.run))


def told(order: Order, work: Callable[[], Outcome]) -> Outcome:
    """Runs `work` and turns whatever it raises into an outcome."""
    try:
        return work()
    except Fenced as error:
        return Outcome("fenced", message=str(error))
    except Damaged as error:
        return Outcome("damaged", message=str(error), damaged=error)
    except Asked:
        return Outcome("stopped", cause="preempted", message="saved its state and left as asked")
    except BaseException as error:
        return Outcome("failed", cause_of(error), _message(error), _keep_log(order, error))


def _run_leased(order: Order, where: Mapping[str, Any], gpu_type: str, compute: Callable[..., Any]) -> Outcome:
    ledger = Ledger(_open(order.store))
    if is_asked_to_leave(ledger.store, order):  # it waited in Ray's queue while the driver was stopping
        raise Asked
    if ledger.find(order.key) is not None:
        return Outcome("published")
    about = {
        "task": order.task.identity(),
        "inputs": dict(order.inputs),
        "driver": order.driver,
        **where,
        "began": round(time.time(), 3),
    }
    lease = ledger.lease(order.key, order.attempt, order.over, about)
    if lease is None:
        return Outcome("busy")
    with _Heart(ledger, lease, order) as heart:
        if lease.fence > 1 and ledger.find(order.key) is not None:  # published between the first look and the lease
            return Outcome("published")
        if "torch" in sys.modules and order.task.threads:  # a reused worker keeps the thread count of its last task
            sys.modules["torch"].set_num_threads(order.task.threads)
        meter = Meter(order.needs.gpus, gpu_type)
        started = time.monotonic()
        result = compute(heart, **inputs_of(order))
        manifest = {
            "task": about["task"],
            "inputs": {**dict(order.inputs), **getattr(result, "sources", {})},
            "metrics": result.metrics,
            "environment": {**_environment(), "threads": order.task.threads},
            "seconds": round(time.monotonic() - started, 3),
            "memory": meter.record(),
        }
        ledger.publish(lease, result.files, manifest)
        heart.state = "done"
    if lease.fence > 1 or heart.saves:
        ledger.drop_checkpoints(lease)
    return Outcome("published")


def inputs_of(order: Order) -> dict[str, Any]:
    """The steps that feed this one.

    Raises:
        Damaged: one is gone, or its manifest is not whole.
    """
    ledger = Ledger(_open(order.store))
    return {name: _input(ledger, key) for name, key in order.inputs.items()}


def _input(ledger: Ledger, key: str) -> Any:
    published = ledger.find(key)
    if published is None:
        raise Damaged(key, "manifest.json", "missing")
    return published


class _Heart:
    """Beats while a task runs, and is the task's `Context`."""

    def __init__(self, ledger: Ledger, lease: Lease, order: Order) -> None:
        self._ledger = ledger
        self._beats = Ledger(ledger.store.brief)
        self._lease = lease
        self._order = order
        self._due = time.monotonic() + order.terms.checkpoint
        self._leave = threading.Event()
        self._over = threading.Event()
        self._progress: tuple[int, int, str] = (0, 0, "")
        self._thread = threading.Thread(target=self._beat, name="heart", daemon=True)
        self.saves = 0
        self.state = "released"

    def __enter__(self) -> _Heart:
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._over.set()
        self._thread.join()
        try:
            self._ledger.beat(self._lease, state=self.state, saves=self.saves)
        except StoreError:
            if error[0] is None:
                raise

    def saved(self) -> bytes | None:
        """The newest checkpoint of an earlier attempt, or else what a shorter step left."""
        return self._ledger.load_checkpoint(self._lease) or self._left()

    def _left(self) -> bytes | None:
        """The checkpoint of the prefix; where it is missing or damaged the step is computed from its beginning."""
        try:
            prefix = self._ledger.find(self._order.prefix) if self._order.prefix is not None else None
            return prefix.read(STATE) if prefix is not None else None
        except (KeyError, Damaged):
            return None

    def should_save(self) -> bool:
        """Whether a checkpoint is due or the worker was asked to leave."""
        return self._leave.is_set() or time.monotonic() >= self._due

    def save(self, state: bytes) -> None:
        """Stores a checkpoint; leaves if asked to."""
        self._ledger.save_checkpoint(self._lease, state)
        self.saves += 1
        self._due = time.monotonic() + self._order.terms.checkpoint
        if self._leave.is_set():
            raise Asked

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Remembers how far the task is, for the next beat."""
        self._progress = (done, total, note)

    def _beat(self) -> None:
        while not self._over.wait(self._order.terms.beat):
            with suppress(StoreError):  # a store that is away for a moment must not end the step
                self._beats.beat(self._lease, saves=self.saves, progress=self._progress)
            with suppress(StoreError):
                if is_asked_to_leave(self._beats.store, self._order):
                    self._leave.set()


def _keep_log(order: Order, error: BaseException) -> str:
    path = f"{folder_of(order.key)}/failure-{order.attempt}.txt"
    try:
        _open(order.store).put(path, "".join(traceback.format_exception(error)).encode())
    except StoreError:
        return ""
    return path


def _message(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    named = "" if isinstance(error, ValueError | StoreError) else f"{type(error).__name__}: "
    return named + (text[0] if text else type(error).__name__)


@cache
def _open(url: str) -> Store:
    return Store.open(url)


@cache
def _environment() -> dict[str, Any]:
    """What a result's last bits may depend on."""
    packages = ("hedgerow", "torch", "numpy", "ray")
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "machine": platform.machine(), "processor": _processor(), **found}


def _processor() -> str:
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else ""
    try:
        with open("/proc/cpuinfo") as lines:
            cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        cpu = platform.processor()
    return json.dumps([cpu, gpu]) if gpu else cpu
