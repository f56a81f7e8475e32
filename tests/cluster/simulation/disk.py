"""The shared store of a simulated world: what has been committed, and how requests get there and back."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from obstore.exceptions import AlreadyExistsError, GenericError

from tests.cluster.simulation.referee import Referee
from tests.cluster.simulation.world import EPOCH, Died, Process, World

PATIENCE = 30.0
"""Seconds after which a client gives up on a store that does not answer, as `cluster.store` asks of obstore."""


@dataclass(frozen=True)
class Weather:
    """How well requests fare, apart from single faults."""

    fastest: float = 0.001
    slowest: float = 0.02
    """Seconds that a request takes, evenly in between."""
    usual: Mapping[str, float] = field(default_factory=dict)
    """Seconds by verb, give or take a fifth, in place of these two."""
    stalls: float = 0.0
    """Share of requests that take up to 3 s."""
    errors: float = 0.0
    """Share of requests that end in an error: before the commit, after it, or with the commit landing later."""
    repeats: float = 0.0
    """Share of conditional puts that the client library sends twice: the second answer is the one that is heard."""


@dataclass
class Disk:
    """The committed objects, and what is done to requests."""

    world: World
    referee: Referee
    weather: Weather = field(default_factory=Weather)
    fair: bool = False
    """After the last fault: every request succeeds."""
    objects: dict[str, bytes] = field(default_factory=dict)
    modified: dict[str, float] = field(default_factory=dict)
    requests: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Requests by the kind of process and the verb."""
    at_request: dict[int, Callable[[Process, bool], None]] = field(default_factory=dict)
    """Called with the process that makes the request of this number, before its commit and after it."""

    def request(self, verb: str, path: str, commit: Callable[[], Any], writes: bool = False) -> Any:
        """One request by the running process: there, the commit, and back."""
        world = self.world
        process = world.process
        assert process is not None
        self.requests += 1
        self.counts[process.name[0], verb] += 1
        strike = self.at_request.pop(self.requests, None)
        latency = self._latency(verb)
        back = latency * world.random.random() if latency > 0.01 else 0.0
        world.sleep(latency - back)
        if process.machine.cut_from_store:
            self._await_link(process, path, commit, writes)
        if strike is not None:
            strike(process, False)
            if process.dead:
                raise Died
        if self.weather.errors and not self.fair:
            self._perhaps_fail(verb, path, commit, writes)
        result, error = self._commit(verb, commit)
        if world.tracing and verb != "get":
            world.note(verb, path, "refused" if error is not None else "")
        if strike is not None:
            strike(process, True)
        if back or process.dead:
            world.sleep(back)
        if process.machine.cut_from_store:
            self._await_link(process, path, lambda: None, False)
        if error is not None:
            raise error
        return result

    def _latency(self, verb: str) -> float:
        weather = self.weather
        if weather.usual:
            return weather.usual[verb] * self.world.uniform(0.8, 1.2)
        latency = self.world.uniform(weather.fastest, weather.slowest)
        if weather.stalls and not self.fair and self.world.chance(weather.stalls):
            latency += self.world.uniform(0, 3)
        return latency

    def _commit(self, verb: str, commit: Callable[[], Any]) -> tuple[Any, Exception | None]:
        """What the server answers; a put that the client sent twice is answered as the second time."""
        repeats = self.weather.repeats
        try:
            result = commit()
            if repeats and verb == "create" and not self.fair and self.world.chance(repeats):
                commit()
        except (FileNotFoundError, AlreadyExistsError) as error:
            return None, error
        return result, None

    def _perhaps_fail(self, verb: str, path: str, commit: Callable[[], Any], writes: bool) -> None:
        """An error before the commit, after it, or with the commit landing when the client has long given up.

        Removals do not land late: nothing in a store keeps one from hitting what was written again in between.
        """
        trouble = self.world.random.random() / self.weather.errors
        if trouble < 1:
            self._fail(path, commit, writes, late=0.4 < trouble < 0.6 and verb != "delete", after=trouble > 0.6)

    def _fail(self, path: str, commit: Callable[[], Any], writes: bool, late: bool, after: bool) -> None:
        self.world.note("store error", path)
        if writes and after:
            self._land(commit)
        elif writes and late:
            self.world.after(self.world.uniform(0, 20), lambda: self._land(commit))
        raise GenericError("the server answered 503")

    def _land(self, commit: Callable[[], Any]) -> None:
        try:
            commit()
        except (FileNotFoundError, AlreadyExistsError):
            return

    def _await_link(self, process: Process, path: str, commit: Callable[[], Any], writes: bool) -> None:
        """A request while the network is down: it gets through when the network heals, or the client gives up."""
        patience = self.world.now + PATIENCE
        while process.machine.cut_from_store:
            self.world.sleep(1.0)
            if self.world.now > patience:
                if writes and self.world.chance(0.2):  # only the answer was lost
                    self._land(commit)
                self.world.note("store not reached", path)
                raise GenericError("connection timed out")

    def write(self, path: str, data: bytes, who: Any, only_new: bool) -> None:
        if only_new and path in self.objects:
            raise AlreadyExistsError(path)
        self.referee.on_write(self.objects, path, data, who)
        self.objects[path] = data
        self.modified[path] = self.world.now

    def remove(self, path: str) -> None:
        if path not in self.objects:
            raise FileNotFoundError(path)
        self.referee.on_delete(self.objects, path)
        del self.objects[path]

    def damage(self, path: str) -> None:
        """Spoils an object, as a failing disk does."""
        data = self.objects[path]
        self.world.note("damage", path)
        self.referee.on_damage(path)
        self.objects[path] = data[: len(data) // 2]

    def digest(self, prefix: str) -> str:
        """One hash over all objects below a folder."""
        whole = hashlib.sha256()
        for path in sorted(path for path in self.objects if path.startswith(prefix)):
            whole.update(path.encode() + b"\0" + self.objects[path] + b"\0")
        return whole.hexdigest()


class Backend:
    """What `cluster.store.Store` takes for a backend of obstore."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def put(self, path: str, data: bytes, mode: str = "overwrite", **named: Any) -> None:
        disk = self._disk
        who = disk.world.strand.label
        only_new = mode == "create"
        verb = "create" if only_new else "put"
        disk.request(verb, path, lambda: disk.write(path, data, who, only_new), writes=True)

    def get(self, path: str, **named: Any) -> Bytes:
        return Bytes(self._disk.request("get", path, lambda: self._found(path)))

    def head(self, path: str) -> dict[str, Any]:
        disk = self._disk
        size, modified = disk.request("head", path, lambda: (len(self._found(path)), disk.modified[path]))
        return {"path": path, "size": size, "last_modified": Moment(modified)}

    def delete(self, path: str) -> None:
        self._disk.request("delete", path, lambda: self._disk.remove(path), writes=True)

    def list(self, prefix: str, offset: str | None = None) -> Iterator[list[dict[str, Any]]]:
        found = self._disk.request(
            "list",
            prefix,
            lambda: sorted(
                path for path in self._disk.objects if path.startswith(f"{prefix}/") and path > (offset or "")
            ),
        )
        modified = self._disk.modified
        yield [
            {"path": path, "size": len(self._disk.objects[path]), "last_modified": Moment(modified[path])}
            for path in found
        ]

    def _found(self, path: str) -> bytes:
        data = self._disk.objects.get(path)
        if data is None:
            raise FileNotFoundError(path)
        return data


class Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def bytes(self) -> bytes:
        return self._data


class Moment:
    """A time by the store's clock."""

    def __init__(self, when: float) -> None:
        self._when = when

    def timestamp(self) -> float:
        return EPOCH + self._when
