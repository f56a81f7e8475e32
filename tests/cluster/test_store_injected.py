"""A run over a store that fails, hesitates and remembers: the results are those of a quiet day, published once."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from obstore.store import MemoryStore

from cluster.failures import StepFailed
from cluster.flow import Flow
from cluster.ledger import Damaged, Fenced, Ledger, folder_of
from cluster.order import Terms
from cluster.store import Store, StoreError
from tests.cluster.conftest import BUCKET
from tests.cluster.driving import Driver, ThreadExecutor
from tests.cluster.injected import Fault, Injected
from tests.cluster.toys import Add, Count, Wait

URL = "memory:///"
KEY = "ab" * 32
TERMS = Terms(beat=0.05, ttl=1.0, checkpoint=0.05, farewell=1.0)
CALM = Terms(beat=10.0, ttl=30.0, checkpoint=10.0)
"""No beats between the requests that are counted."""


async def graph(flow: Flow) -> int:
    """Two chains that meet: seven steps, one of which saves checkpoints."""
    base = flow.step(Count(8, 0.02))
    rows = [flow.step(Add(number), x=base) for number in (1, 2)]
    tops = [flow.step(Add(10 + number), x=row) for number, row in enumerate(rows)]
    last = flow.step(Add(100), a=tops[0], b=tops[1])
    return int((await flow.step(Add(1000), x=last))["sum"])


SUM = 1000 + 100 + (8 + 1 + 10) + (8 + 2 + 11)


def results(store: Store) -> dict[str, Any]:
    """What is published, by key: task, inputs, metrics and the digests of the files, which are checked."""
    published = {}
    for path in store.paths("steps"):
        if path.endswith("/manifest.json"):
            step = Ledger(store).find(path.split("/")[-2])
            assert step is not None
            step.verify()
            digests = {name: entry["sha256"] for name, entry in step.manifest["files"].items()}
            published[step.key] = (step.manifest["task"], step.manifest["inputs"], step.metrics, digests)
    return published


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    backend = Injected({})
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(Store(URL, backend), monkeypatch) == 1
    return results(Store(URL, backend.inner))


def run(store: Store, monkeypatch: pytest.MonkeyPatch, starts: int = 1) -> int:
    """Runs the graph on a store that workers see too, started again if a step spends its budget; how often it was."""
    monkeypatch.setattr("cluster.worker._open", lambda url: store)
    for start in range(1, starts + 1):
        with contextlib.suppress(StepFailed):
            assert Driver(store, ThreadExecutor(), TERMS).run(graph) == SUM
            return start
    raise AssertionError(f"not done after {starts} starts")


RATES: list[tuple[dict[Fault, float], int]] = [
    ({"before": 0.04}, 1),
    ({"before": 0.04}, 2),
    ({"after": 0.1}, 2),
    ({"after": 0.1}, 3),
    ({"conflict": 0.8}, 0),
    ({"slow": 0.2}, 0),
    ({"stale": 0.3}, 0),
    ({"stale": 0.3}, 3),
    ({"before": 0.02, "after": 0.03, "conflict": 0.3, "slow": 0.05, "stale": 0.1}, 1),
    ({"before": 0.02, "after": 0.03, "conflict": 0.3, "slow": 0.05, "stale": 0.1}, 2),
]


@pytest.mark.parametrize(("rates", "seed"), RATES, ids=lambda value: str(value).replace(" ", ""))
def test_whatever_the_store_does_the_results_are_the_same_and_published_once(
    rates: dict[Fault, float], seed: int, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Injected(rates, seed)
    run(Store(URL, backend), monkeypatch, starts=4)
    assert len(backend.injected) >= min(3, len(rates))  # else the test says nothing
    store = Store(URL, backend.inner)
    assert results(store) == undisturbed
    created = Counter({path: number for path, number in backend.created.items() if path.endswith("/manifest.json")})
    assert set(created.values()) == {1}
    assert len(created) == len(undisturbed) == 7
    assert list(store.paths("set-aside")) == []


def test_a_store_that_is_away_for_a_while_ends_neither_run_nor_step(
    undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Injected({})
    away = threading.Timer(0.15, backend.rates.__setitem__, ("before", 1.0))
    back = threading.Timer(2.5, backend.rates.__setitem__, ("before", 0.0))  # longer than a lease lives
    for timer in (away, back):
        timer.start()
    assert run(Store(URL, backend), monkeypatch) == 1
    for timer in (away, back):
        timer.join()
    assert backend.injected["before"] > 5
    assert results(Store(URL, backend.inner)) == undisturbed


def test_a_driver_that_could_not_look_does_not_take_that_for_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(URL, Injected({}))
    monkeypatch.setattr("cluster.worker._open", lambda url: store)
    driver = Driver(store, ThreadExecutor(), Terms(beat=0.05, ttl=0.8))
    look, began, seen = driver.engine._ledger.current_lease, time.monotonic(), []

    def look_through_an_outage(key: str, since: int = 1) -> Any:
        passed = time.monotonic() - began
        if passed < 0.5:
            seen.append(look(key, since))
            return seen[-1]
        if passed < 2.0:
            raise StoreError("away")
        if passed < 2.4:  # the worker could not write meanwhile either
            return seen[-1]
        return look(key, since)

    monkeypatch.setattr(driver.engine._ledger, "current_lease", look_through_an_outage)
    threading.Timer(3.0, (tmp_path / "flag").touch).start()
    driver.run(lambda flow: flow.step(Wait(str(tmp_path / "flag"))).published())
    assert seen
    assert driver.count("retried") == 0
    assert driver.count("started") == 1


# ---- what a creation and a look say when the store does not know its own mind


class Scripted:
    """A backend in memory whose next reads of a path are not-found."""

    def __init__(self, blind: int) -> None:
        self.inner = MemoryStore()
        self.blind = blind

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def get(self, path: str, **how: Any) -> Any:
        self.blind -= 1
        if self.blind >= 0:
            raise FileNotFoundError(path)
        return self.inner.get(path, **how)


@pytest.mark.parametrize(("writer", "won"), [(b"writer 1", True), (b"writer 2", False)])
def test_a_creation_whose_object_is_not_seen_at_first_knows_its_own(writer: bytes, won: bool) -> None:
    backend = Scripted(blind=2)
    store = Store(URL, backend)
    backend.inner.put("a", b"writer 1")
    assert store.create("a", writer) is won


def test_a_creation_whose_object_is_never_seen_does_not_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.store.CREATE_PAUSES", (0.0, 0.01))
    backend = Scripted(blind=100)
    backend.inner.put("a", b"writer 1")
    with pytest.raises(StoreError, match=r"^a: is said to be there, and cannot be read$"):
        Store(URL, backend).create("a", b"writer 1")


def test_a_publication_is_not_set_aside_for_a_file_that_is_fresh() -> None:
    backend = Scripted(blind=0)
    ledger = Ledger(Store(URL, backend))
    lease = ledger.lease(KEY, "a")
    assert lease is not None
    published = ledger.publish(lease, {"one.bin": b"data"}, {"metrics": {}})
    get = backend.inner.get

    class Late:
        """Files that show half a second after their manifest."""

        def __init__(self) -> None:
            self.since = time.monotonic()

        def __getattr__(self, name: str) -> Any:
            return getattr(backend.inner, name)

        def get(self, path: str, **how: Any) -> Any:
            if path.endswith("one.bin") and time.monotonic() - self.since < 0.5:
                raise FileNotFoundError(path)
            return get(path, **how)

    late = Ledger(Store(URL, Late()))
    found = late.find(KEY)
    assert found is not None
    with pytest.raises(Damaged, match="missing") as damaged:
        found.read("one.bin")
    assert late.set_aside(damaged.value) is None
    assert ledger.find(KEY) == published


def test_a_stale_look_at_fences_and_manifest_makes_no_second_publication(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.store.CREATE_PAUSES", (0.0, 0.01))

    class Forgetful(Injected):
        """Knows of nothing that was written, for ever."""

        def __init__(self, inner: Any) -> None:
            super().__init__({"stale": 1.0}, age=3600)
            self.inner = inner

    backend = MemoryStore()
    sees, blind = Ledger(Store(URL, backend)), Ledger(Store(URL, Forgetful(backend)))
    first = sees.lease(KEY, "first")
    assert first is not None
    with pytest.raises(StoreError, match="is said to be there"):
        blind.lease(KEY, "second")
    second = sees.lease(KEY, "second", over=1)
    assert second is not None
    published = sees.publish(second, {"one.bin": b"right"}, {"metrics": {}})
    assert not blind.is_fenced(first)
    with pytest.raises((Fenced, StoreError)):
        blind.publish(first, {"one.bin": b"late"}, {"metrics": {}})
    found = sees.find(KEY)
    assert found == published
    assert found is not None
    assert found.read("one.bin") == b"right"


# ---- what it costs


def requests(store: Store, backend: Any, monkeypatch: pytest.MonkeyPatch, workflow: Any) -> Counter[str]:
    """The requests that a run of a workflow makes."""
    monkeypatch.setattr("cluster.worker._open", lambda url: store)
    before = Counter(backend.calls)
    Driver(store, ThreadExecutor(), CALM).run(workflow)
    return Counter(backend.calls) - before


def test_a_found_step_costs_one_request_and_a_computed_one_nine_and_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Injected({})
    store = Store(URL, backend)
    alone = lambda flow: flow.step(Add(1)).published()
    assert requests(store, backend, monkeypatch, alone) == {"get": 4, "put": 3 + 1, "head": 1}
    assert requests(store, backend, monkeypatch, alone) == {"get": 1}

    async def chain(flow: Flow) -> None:
        await flow.step(Add(2), x=flow.step(Add(1))).published()

    fed = requests(store, backend, monkeypatch, chain)
    assert fed == {"get": 1 + 4 + 2, "put": 3 + 1, "head": 1}  # the found one, and manifest and file of the input


def test_nothing_is_listed_while_a_run_executes(undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Injected({"after": 0.1}, 3)
    store = Store(URL, backend)

    def listed(*arguments: Any) -> Any:
        raise AssertionError("a list on the hot path")

    for verb in ("entries", "paths", "folders"):
        monkeypatch.setattr(store, verb, listed)
    run(store, monkeypatch, starts=3)
    assert Driver(store, ThreadExecutor(), TERMS).run(graph) == SUM  # found
    assert backend.listed == []
    assert results(Store(URL, backend.inner)) == undisturbed


# ---- clocks


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_an_hour_of_skew_changes_nothing_wherever_it_is(
    skew: float, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process's clock is wrong by its own amount, and jumps: every look at it is another hour."""
    right, draw = time.time, random.Random(int(skew))
    backend = Injected({"after": 0.1}, 2)
    with monkeypatch.context() as clock:
        clock.setattr(time, "time", lambda: right() + draw.choice([0.0, skew]))
        run(Store(URL, backend), monkeypatch, starts=3)
    assert results(Store(URL, backend.inner)) == undisturbed
    assert {n for path, n in backend.created.items() if path.endswith("/manifest.json")} == {1}


# ---- over the wire


class _Faulty(BaseHTTPRequestHandler):
    """Passes requests on to an S3 server; at seeded moments answers 503, before or after it has."""

    behind = ""
    rate = 0.0
    draw = random.Random(0)
    faults: ClassVar[Counter[str]] = Counter()
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chance = self.draw.random()
        if chance < self.rate / 2:
            self.faults["before"] += 1
            self._answer(503, [], b"")
            return
        connection = http.client.HTTPConnection(self.behind)
        connection.request(self.command, self.path, body, dict(self.headers))
        reply = connection.getresponse()
        data = reply.read()
        connection.close()
        if chance < self.rate:
            self.faults["after"] += 1
            self._answer(503, [], b"")
        else:
            self._answer(reply.status, reply.getheaders(), data)

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        own = {name.lower(): value for name, value in headers}
        size = own.get("content-length", "0") if self.command == "HEAD" else str(len(data))
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", size)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass_on  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def faulty(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Faulty]]:
    """The way to the S3 server, through a proxy with a tenth of all requests answered 503."""
    attributes = {"behind": urlsplit(s3_server).netloc, "rate": 0.1, "draw": random.Random(7), "faults": Counter()}
    handler = type("Faulty", (_Faulty,), attributes)
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True).start()
    with monkeypatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
        yield handler
    proxy.shutdown()
    proxy.server_close()


def test_a_real_server_that_answers_503_before_and_after_a_commit_changes_nothing(
    faulty: type[_Faulty], s3_server: str, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{BUCKET}/{uuid4().hex}"
    run(Store.open(url), monkeypatch, starts=2)
    assert faulty.faults["before"] > 1
    assert faulty.faults["after"] > 1
    with monkeypatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", s3_server)
        direct = Store.open(url)
    assert results(direct) == undisturbed
    assert list(direct.paths("set-aside")) == []
    for key in undisturbed:
        named = json.loads(direct.get(f"{folder_of(key)}/manifest.json") or b"")["fence"]
        assert direct.exists(f"{folder_of(key)}/lease-{named:04d}.json")
