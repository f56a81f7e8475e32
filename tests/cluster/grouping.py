"""A driver of one training in two processes on a cluster: `python -m tests.cluster.grouping STORE ADDRESS FLAG`."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from cluster.engine import Engine
from cluster.executor import RayExecutor
from cluster.flow import Flow, Handle
from cluster.order import Terms
from cluster.session import session
from cluster.store import Store
from tasks.training.train import Train
from tests.tasks.teams import Troubled
from tests.tasks.training_toys import toy

TERMS = Terms(beat=0.2, ttl=30.0, checkpoint=0.5, farewell=30.0)


def slow(flag: str) -> Train:
    """Twenty-four seconds or more of training."""
    return toy(objective=Troubled(at=10**6, flag=flag, pause=0.05), epochs=80, world_size=2)


def say(**record: Any) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


def main() -> None:
    url, address, flag = sys.argv[1:4]

    def tell(state: str, handle: Handle, **news: Any) -> None:
        say(state=state, key=handle.key, cause=news.get("cause"), message=news.get("message"))

    async def drive(engine: Engine) -> None:
        await Flow(engine).step(slow(flag))

    with session(address) as ray:
        asyncio.run(drive(Engine(Store.open(url), RayExecutor(ray), tell, TERMS)))


if __name__ == "__main__":
    main()
