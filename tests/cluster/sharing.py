"""Steps that share GPUs, and drivers that place them."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cluster.engine import Engine
from cluster.order import Terms
from cluster.placement import parse_rules
from cluster.profiles import Placing, Profiles
from cluster.store import Store
from tests.cluster.driving import SHORT, Driver
from tests.cluster.toys import Made, Toy

TOTAL = 16 * 2**30
"""Bytes of the GPUs that are none."""


@dataclass
class Meet(Toy):
    """Notes its beginning, and ends when as many as it waits for have begun, or in vain after a while."""

    number: int
    folder: str
    others: int

    def identity(self) -> dict[str, Any]:
        record = asdict(self)
        del record["gpus"]
        return {"kind": self.kind, **record}

    def run(self, context: Any, **inputs: Any) -> Made:
        folder = Path(self.folder)
        (folder / f"here-{self.number}").write_text(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}")
        until = time.monotonic() + 10
        while len(list(folder.glob("here-*"))) < self.others and time.monotonic() < until:
            time.sleep(0.02)
        return Made({"met": len(list(folder.glob("here-*"))), "gpus": self.gpus})


@dataclass
class Learn(Toy):
    """Takes a while, or meets others in a folder; where a driver's process is given, others seem to have a GPU."""

    seed: int
    width: int = 8
    pause: float = 0.0
    driver: int = 0
    folder: str = ""

    def identity(self) -> dict[str, Any]:
        record = asdict(self)
        for name in ("gpus", "driver", "folder", "pause"):
            del record[name]
        return {"kind": self.kind, **record}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.driver and os.getpid() != self.driver:
            sys.modules["torch"] = FakeTorch()  # type: ignore[assignment]

    def run(self, context: Any, **inputs: Any) -> Made:
        time.sleep(self.pause)
        if self.folder:
            self._meet(Path(self.folder))
        return Made({"seed": self.seed}, {"sum.txt": b"1"})

    def _meet(self, folder: Path) -> None:
        """The first ends alone; each other one ends when three are here at once, or in vain after a while."""
        here, first = folder / f"here-{self.seed}", not any(folder.iterdir())
        here.touch()
        (folder / f"met-{self.seed}").write_text("1")
        until = time.monotonic() + (0 if first else 5)
        while (begun := len(list(folder.glob("here-*")))) < 3 and time.monotonic() < until:
            time.sleep(0.02)
        (folder / f"met-{self.seed}").write_text(str(begun))
        time.sleep(0.1)
        here.unlink()


class FakeTorch(SimpleNamespace):
    """As much of PyTorch as a meter asks for, with a step that reserves 1 GiB."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        cuda = SimpleNamespace(
            is_available=lambda: True,
            get_device_name=lambda: "Fake 16GB",
            get_device_properties=lambda device: SimpleNamespace(total_memory=TOTAL),
            empty_cache=lambda: self.calls.append(("empty", None)),
            reset_peak_memory_stats=lambda: self.calls.append(("reset", None)),
            set_per_process_memory_fraction=lambda share: self.calls.append(("bound", share)),
            max_memory_reserved=lambda: 2**30,
        )
        super().__init__(cuda=cuda, set_num_threads=lambda threads: None)


def placed(store: Store, executor: Any, wait: float, *rules: str, terms: Terms = SHORT) -> Driver:
    made = Driver(store, executor, terms)
    placing = Placing(parse_rules(rules), machines=executor.machines)
    made.engine = Engine(store, executor, lambda state, handle, **news: made._hear(state, handle, news), terms,
                         placing=placing, wait_for_nodes=wait)  # fmt: skip
    return made


def measured(store: Store, executor: Any) -> Driver:
    made = Driver(store, executor)
    placing = Placing(parse_rules(["gpus=auto"]), Profiles(store), executor.machines)
    made.engine = Engine(store, executor, lambda state, handle, **news: made._hear(state, handle, news),
                         replace(SHORT, ttl=30.0), placing=placing)  # fmt: skip
    return made
