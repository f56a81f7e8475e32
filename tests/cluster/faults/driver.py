"""A driver on a cluster, as a process: `python -m tests.cluster.faults.driver ADDRESS STORE TRACE WORK TERMS`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from cluster import executor
from cluster.engine import Engine
from cluster.executor import RayExecutor
from cluster.failures import StepFailed
from cluster.flow import Flow, Handle
from cluster.order import Order, Outcome, Terms
from cluster.session import ClusterUnreachable, abandon, leave, session
from cluster.store import Store, StoreError
from tests.cluster.faults.climbs import Work


def say(state: str, **record: Any) -> None:
    sys.stdout.write(json.dumps({"t": time.monotonic(), "state": state, **record}) + "\n")
    sys.stdout.flush()


def tell(state: str, handle: Handle, **news: Any) -> None:
    shown = {name: news[name] for name in ("cause", "message", "attempt") if name in news}
    say(state, key=handle.key, kind=handle.task.kind, number=getattr(handle.task, "number", None), **shown)


def note_outcomes(path: Path) -> None:
    """Has workers write down what became of their attempts: of a zombie's nobody else would hear."""
    run_on_node = executor._run_on_node

    def noting(order: Order, *more: Any) -> Outcome:
        outcome = run_on_node(order, *more)
        with path.open("a") as file:
            line = {"t": time.monotonic(), "attempt": order.attempt, "key": order.key, "state": outcome.state}
            file.write(json.dumps({**line, "cause": outcome.cause, "message": outcome.message}) + "\n")
        return outcome

    executor._run_on_node = noting


def main() -> int:
    address, url, trace, work, terms = sys.argv[1:6]
    note_outcomes(Path(trace + ".outcomes"))
    try:
        with session(address) as ray:
            say("joined")
            engine = Engine(Store.open(url), RayExecutor(ray), tell, Terms(**json.loads(terms)))
            try:
                say("result", result=asyncio.run(Work(**json.loads(work)).run(Flow(engine), trace)))
                code = 0
            except StepFailed as failure:
                say("failure", cause=failure.cause, message=failure.message)
                code = 1
            except (ClusterUnreachable, StoreError) as error:
                say("lost", message=str(error))
                code = 3
                if isinstance(error, ClusterUnreachable):
                    abandon()
        say("left")
        return code
    except ClusterUnreachable as error:
        say("unreachable", message=str(error))
        return 3


if __name__ == "__main__":
    leave(main())
