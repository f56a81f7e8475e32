"""A store's backend with faults: seeded, so that a seed and a path have the same faults whoever comes first."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from obstore.exceptions import AlreadyExistsError, GenericError
from obstore.store import MemoryStore

Fault = Literal["before", "after", "conflict", "slow", "stale"]
"""An error before anything happened; an error after it did; a success that the client's own retry takes for another's;
an answer that takes its time; an answer of a while ago, or not-found for an object that is fresh."""

WRITES: frozenset[Fault] = frozenset({"before", "after", "slow"})
CREATIONS: frozenset[Fault] = WRITES | {"conflict"}
READS: frozenset[Fault] = frozenset({"before", "slow", "stale"})


class Injected:
    """Passes everything on to a backend in memory, but for the faults."""

    def __init__(self, rates: Mapping[Fault, float], seed: int = 0, slow: float = 0.05, age: float = 0.3) -> None:
        """An empty backend.

        Args:
            rates: of the calls on which a fault is possible, the share that has it.
            seed: of the moments.
            slow: seconds that a slow answer takes.
            age: seconds by which a stale answer is old.
        """
        self.inner = MemoryStore()
        self.rates = dict(rates)
        self.injected: Counter[Fault] = Counter()
        self.created: Counter[str] = Counter()
        """How often an object came into being by put-if-absent."""
        self.listed: list[str] = []
        self.calls: Counter[str] = Counter()
        self._seed, self._slow, self._age = seed, slow, age
        self._asked: Counter[tuple[str, str]] = Counter()
        self._past: dict[str, list[tuple[float, bytes | None]]] = {}
        self._lock = threading.Lock()

    def put(self, path: str, data: bytes, mode: Literal["create", "overwrite"] = "overwrite") -> Any:
        fault = self._fault("put", path, CREATIONS if mode == "create" else WRITES)
        with self._lock:
            answer = self.inner.put(path, data, mode=mode)
            self.created[path] += mode == "create"
            self._remember(path, bytes(data))
        if fault == "conflict":
            raise AlreadyExistsError(f"{path} already exists")
        return self._answer(fault, path, answer)

    def get(self, path: str, options: Any = None) -> Any:
        fault = self._fault("get", path, READS)
        if fault == "stale":
            past = MemoryStore()
            if (data := self._as_it_was(path)) is not None:
                past.put(path, data)
            return past.get(path)
        return self._answer(fault, path, self.inner.get(path))

    def head(self, path: str) -> Any:
        fault = self._fault("head", path, READS)
        if fault == "stale" and self._as_it_was(path) is None:
            raise FileNotFoundError(path)
        return self._answer(fault, path, self.inner.head(path))

    def delete(self, path: str) -> None:
        fault = self._fault("delete", path, WRITES)
        with self._lock:
            self.inner.delete(path)
            self._remember(path, None)
        self._answer(fault, path, None)

    def list(self, prefix: str, **options: Any) -> Any:
        self.listed.append(prefix)
        return self.inner.list(prefix, **options)

    def list_with_delimiter(self, prefix: str) -> Any:
        self.listed.append(prefix)
        return self.inner.list_with_delimiter(prefix)

    def _fault(self, call: str, path: str, possible: frozenset[Fault]) -> Fault | None:
        """What befalls this call; raises if that is an error before anything happens."""
        with self._lock:
            number = self._asked[call, path]
            self._asked[call, path] += 1
            self.calls[call] += 1
            draw = random.Random(f"{self._seed} {call} {path} {number}").random()
            drawn: Fault | None = None
            for fault, rate in self.rates.items():
                if fault in possible and 0 <= draw < rate:
                    drawn = fault
                    self.injected[fault] += 1
                draw -= rate if fault in possible else 0
        if drawn == "before":
            raise GenericError(f"503 before {call}")
        if drawn == "slow":
            time.sleep(self._slow)
        return drawn

    def _answer(self, fault: Fault | None, path: str, answer: Any) -> Any:
        if fault == "after":
            raise GenericError(f"503 after {path}")
        return answer

    def _remember(self, path: str, data: bytes | None) -> None:
        self._past.setdefault(path, []).append((time.monotonic(), data))

    def _as_it_was(self, path: str) -> bytes | None:
        then = time.monotonic() - self._age
        with self._lock:
            known = [data for moment, data in self._past.get(path, []) if moment <= then]
        return known[-1] if known else None
