"""Runs as they lie in a store, written as a driver and its workers write them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.ledger import Lease, Ledger
from cluster.owner import Owner
from cluster.runs import EventLog, Run, write_plan
from cluster.store import Store

ELSEWHERE = {"host": "otherhost/boot/pid", "pid": 1, "started": 0.0}
"""A process on another machine."""
GONE = {**Owner.me().to_json(), "started": 1.0}
"""A process of this machine that does not run any more."""


class Scene:
    """A run, written as a driver and its workers write it."""

    def __init__(self, store: Store, run_id: str = "run-1", driver: str = "d1", owner: Mapping[str, Any] | None = None):
        self.store, self.ledger, self.run_id, self.driver = store, Ledger(store), run_id, driver
        self.owner = dict(owner or Owner.me().to_json())
        """Of the driver and of its workers."""
        Run.open(store, run_id, {"name": run_id})
        write_plan(store, run_id, [])
        self.log = EventLog(store, run_id, driver)
        self.log.write("run", state="started", driver=driver, owner=self.owner, cpus=4, gpus=0)

    def tell(self, state: str, key: str, **news: Any) -> None:
        self.log.write("step", state=state, key=key, kind="train", at={"level": 1}, **news)

    def hold(self, key: str, node: str = "aa11", **beat: Any) -> Lease:
        """A worker takes the lease on a step."""
        self.tell("started", key)
        about = {"node": node, "began": time.time() - 5, "owner": self.owner}
        lease = self.ledger.lease(key, f"{self.driver}-{key}", over=99, about=about)
        assert lease is not None
        if beat:
            self.ledger.beat(lease, **beat)
        return lease

    def flush(self) -> None:
        self.log._flush()

    def beat(self) -> None:
        """The driver shows that it lives."""
        self.store.put(self.log._beat, b"")

    def end(self) -> None:
        self.log.write("run", state="ended", driver=self.driver, code=0)
        self.log.close()


def age(store: Store, below: str, seconds: float, of: str = "") -> None:
    """Lets objects with this in their name be as old as if written so long ago."""
    then = time.time() - seconds
    for path in (path for path in store.paths(below) if of in path):
        os.utime(Path(store.url) / path, (then, then))
