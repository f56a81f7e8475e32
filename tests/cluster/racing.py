"""What processes that race each other run; a module of its own, so that a spawned process imports little."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from cluster.ledger import Ledger
from cluster.store import Store

ROUNDS = 12


def race(url: str, run: Callable[[str, int], Any], racers: int) -> list[list[Any]]:
    """What each process got in each round."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(racers)
    with context.Pool(racers, initializer=_meet, initargs=(barrier,)) as pool:
        return pool.starmap(_rounds, [(url, run, racer) for racer in range(racers)], chunksize=1)


def creates(url: str, racer: int, number: int) -> bool:
    return Store.open(url).create(f"race/{number}", f"racer {racer}".encode())


def takes(url: str, racer: int, number: int) -> int | None:
    lease = Ledger(Store.open(url)).lease(f"{number:064x}", f"attempt-{racer}-{number}")
    return None if lease is None else lease.fence


def _meet(barrier: Any) -> None:
    global start
    start = barrier


def _rounds(url: str, run: Callable[[str, int, int], Any], racer: int) -> list[Any]:
    results = []
    for number in range(ROUNDS):
        start.wait(60)
        results.append(run(url, racer, number))
    start.wait(60)  # nobody leaves, and is then gone as an owner, while others still ask
    return results
