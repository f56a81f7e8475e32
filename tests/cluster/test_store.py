"""One contract for every store: disk, memory and S3."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from obstore.exceptions import AlreadyExistsError, GenericError

from cluster.store import SIDE_BY_SIDE, Store, StoreError
from tests.cluster import racing
from tests.cluster.conftest import BUCKET

ROOT = Path(__file__).parents[2]


# ---- one contract, every kind of store


def test_what_was_put_is_what_is_read(store: Store) -> None:
    for data in (b"", b"x", bytes(range(256)) * 1000):
        store.put("a/b.bin", data)
        assert store.get("a/b.bin") == data


def test_overwriting_leaves_nothing_of_the_old_object(store: Store) -> None:
    store.put("a", b"long" * 1000)
    store.put("a", b"short")
    assert store.get("a") == b"short"


def test_readers_never_see_a_part_of_a_write(store: Store) -> None:
    size = 100_000
    store.put("a", b"0" * size)
    seen: set[tuple[int, int]] = set()
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            data = store.get("a") or b""
            seen.add((len(data), len(set(data))))
            time.sleep(0.001)

    with ThreadPoolExecutor(2) as readers:
        for _ in range(2):
            readers.submit(read)
        for turn in range(15):
            store.put("a", str(turn % 10).encode() * size)
        over.set()
    assert seen == {(size, 1)}


def test_a_missing_object_is_none_and_no_error(store: Store) -> None:
    store.put("a/b", b"1")
    assert store.get("nothing") is None
    assert store.get("a") is None
    assert not store.exists("nothing")
    assert not store.exists("a")
    assert store.exists("a/b")


def test_create_keeps_the_first_bytes(store: Store) -> None:
    assert store.create("a", b"first")
    assert not store.create("a", b"second")
    assert store.get("a") == b"first"


def test_create_is_possible_again_after_delete(store: Store) -> None:
    assert store.create("a", b"first")
    store.delete(["a"])
    assert store.create("a", b"second")
    assert store.get("a") == b"second"


def test_paths_are_all_objects_below_a_folder_and_no_others(store: Store) -> None:
    names = {"a/1", "a/b/2", "a/b/c/3", "ab/4", "5"}
    for name in names:
        store.put(name, b"x")
    assert set(store.paths("a")) == {"a/1", "a/b/2", "a/b/c/3"}
    assert set(store.paths("a/b/")) == {"a/b/2", "a/b/c/3"}
    assert set(store.paths("")) == names
    assert list(store.paths("nothing")) == []


def test_more_objects_than_one_page_are_all_listed(store: Store) -> None:
    names = {f"many/{number:04d}" for number in range(1100)}
    with ThreadPoolExecutor(8) as writers:
        list(writers.map(lambda name: store.put(name, b""), names))
    assert set(store.paths("many")) == names


def test_folders_are_the_names_directly_below(store: Store) -> None:
    for name in ("runs/b/1", "runs/a/2", "runs/a/deep/3", "runs/file"):
        store.put(name, b"x")
    assert store.folders("runs") == ["a", "b"]
    assert store.folders("runs/a") == ["deep"]
    assert store.folders("nothing") == []


def test_an_emptied_folder_is_no_folder(store: Store) -> None:
    store.put("runs/a/1", b"x")
    store.put("runs/b/deep/2", b"x")
    store.delete(["runs/a/1"])
    assert store.folders("runs") == ["b"]


def test_a_look_tells_size_and_age_by_the_store_s_clock(store: Store) -> None:
    assert store.look("a") is None
    store.put("a", b"12345")
    found = store.look("a")
    assert found is not None
    assert (found.path, found.size) == ("a", 5)
    assert list(store.entries("")) == [found]
    assert -1 <= store.clock() - found.modified < 10  # a store may count whole seconds
    assert list(store.paths("")) == ["a"]


def test_delete_forgives_what_is_already_gone(store: Store) -> None:
    store.put("a", b"1")
    store.put("b", b"2")
    store.delete(["a", "nothing", "a", "b"])
    assert list(store.paths("")) == []


def test_move_takes_the_bytes_along_and_leaves_nothing(store: Store) -> None:
    store.put("a/1", b"x")
    store.put("b/2", b"old")
    store.move("a/1", "b/2")
    assert store.get("b/2") == b"x"
    assert not store.exists("a/1")
    store.move("nothing", "b/2")
    assert store.get("b/2") == b"x"


def test_of_sixteen_threads_that_create_exactly_one_wins(store: Store) -> None:
    barrier = threading.Barrier(16)

    def create(racer: int, number: int) -> bool:
        barrier.wait(30)
        return store.create(f"race/{number}", f"racer {racer}".encode())

    with ThreadPoolExecutor(16) as racers:
        for number in range(8):
            wins = list(racers.map(create, range(16), [number] * 16))
            assert wins.count(True) == 1
            assert store.get(f"race/{number}") == f"racer {wins.index(True)}".encode()


def test_of_several_processes_that_create_exactly_one_wins(shared_url: str) -> None:
    results = racing.race(shared_url, racing.creates, racers=4)
    store = Store.open(shared_url)
    for number, wins in enumerate(zip(*results, strict=True)):
        assert wins.count(True) == 1
        assert store.get(f"race/{number}") == f"racer {wins.index(True)}".encode()


class _LosesAnswers:
    """A backend whose writes succeed while their answer is lost."""

    def __init__(self, backend: Any, error: Exception) -> None:
        self._backend = backend
        self._error: Exception | None = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def put(self, path: str, data: bytes, **how: Any) -> Any:
        answer = self._backend.put(path, data, **how)
        error, self._error = self._error, None
        if error is not None:
            raise error
        return answer


def test_a_creation_whose_retry_met_itself_is_a_success(store: Store) -> None:
    careless = Store(store.url, _LosesAnswers(store._backend, AlreadyExistsError("already exists")))
    assert careless.create("a", b"writer 1")
    assert not store.create("a", b"writer 2")


def test_a_creation_whose_answer_was_lost_succeeds_when_repeated(store: Store) -> None:
    careless = Store(store.url, _LosesAnswers(store._backend, GenericError("timed out")))
    with pytest.raises(StoreError, match=r"^a: timed out$"):
        careless.create("a", b"writer 1")
    assert careless.create("a", b"writer 1")
    assert not store.create("a", b"writer 2")


def test_an_impossible_path_is_one_line_that_names_it(store: Store) -> None:
    for act in (
        lambda: store.put("../x", b""),
        lambda: store.create("../x", b""),
        lambda: store.get("../x"),
        lambda: store.exists("../x"),
    ):
        with pytest.raises(StoreError) as failure:
            act()
        assert str(failure.value).startswith("../x: ")
        assert "\n" not in str(failure.value)


# ---- many, and large


def test_several_objects_are_all_written(store: Store) -> None:
    objects = {f"a/{number}": str(number).encode() for number in range(20)}
    store.put_all(objects)
    assert {path: store.get(path) for path in store.paths("a")} == objects
    store.put_all({})


class _Careful:
    """A backend that notes what happens at once, and refuses some paths."""

    def __init__(self, backend: Any, refused: str = "no such path") -> None:
        self._backend = backend
        self._refused = refused
        self._lock = threading.Lock()
        self._now = 0
        self.most = 0
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        def call(path: Any, *rest: Any, **how: Any) -> Any:
            with self._lock:
                self._now += 1
                self.most = max(self.most, self._now)
                self.calls.append((name, path))
            try:
                time.sleep(0.02)
                if self._refused in path:
                    raise GenericError("no")
                return getattr(self._backend, name)(path, *rest, **how)
            finally:
                with self._lock:
                    self._now -= 1

        return call


@pytest.fixture
def remote(s3_server: str) -> Store:
    """An empty store on an S3 server."""
    return Store.open(f"s3://{BUCKET}/{uuid4().hex}")


def test_files_of_a_remote_store_travel_side_by_side_but_not_all_at_once(remote: Store) -> None:
    backend = _Careful(remote._backend)
    Store(remote.url, backend).put_all({f"a/{number}": b"x" for number in range(20)})
    assert 2 < backend.most <= SIDE_BY_SIDE
    assert len(list(remote.paths("a"))) == 20


def test_when_one_of_several_is_refused_none_is_still_on_its_way(remote: Store) -> None:
    backend = _Careful(remote._backend, "a/3")
    with pytest.raises(StoreError, match=r"^a/3: no$"):
        Store(remote.url, backend).put_all({f"a/{number}": b"x" for number in range(20)})
    before = len(backend.calls)
    time.sleep(0.1)
    assert len(backend.calls) == before
    assert backend._now == 0


def test_many_are_removed_in_one_request(remote: Store) -> None:
    paths = [f"a/{number}" for number in range(30)]
    remote.put_all(dict.fromkeys(paths, b"x"))
    backend = _Careful(remote._backend)
    Store(remote.url, backend).delete([*paths, "nothing"])
    assert [name for name, _ in backend.calls] == ["delete"]
    assert list(remote.paths("a")) == []


@pytest.mark.parametrize("size", [19_999, 20_000, 20_001, 30_000, 45_678])
def test_a_large_object_is_read_in_parts_to_the_same_bytes(
    remote: Store, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.store.PART", 10_000)
    data = random.Random(size).randbytes(size)
    remote.put("a", data)
    backend = _Careful(remote._backend)
    assert Store(remote.url, backend).get("a") == data
    assert len(backend.calls) == (1 if size <= 20_000 else 1 + -(-size // 10_000))
    assert (backend.most > 1) == (size > 20_000)


def test_a_large_object_that_is_replaced_meanwhile_is_never_read_in_a_mixture(
    remote: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.store.PART", 1_000)
    remote.put("a", b"0" * 10_000)

    class Replaces:
        def __init__(self) -> None:
            self.reads = 0

        def get(self, path: str, **how: Any) -> Any:
            self.reads += 1
            if self.reads == 4:
                remote.put(path, b"1" * 10_000)
            return remote._backend.get(path, **how)

    with pytest.raises(StoreError, match=r"^a: "):
        Store(remote.url, Replaces()).get("a")
    assert remote.get("a") == b"1" * 10_000


def test_an_upload_of_several_parts_is_whole_or_absent(remote: Store) -> None:
    data = random.Random(1).randbytes(11 * 2**20)  # obstore sends more than 5 MiB in parts
    remote.put("a", data)
    assert remote.get("a") == data


# ---- opening


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/x", "s3://key@bucket/x", "gs://:secret@bucket"])
def test_credentials_in_the_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="must not hold credentials") as failure:
        Store.open(url)
    assert "secret" not in str(failure.value)


def test_an_unknown_scheme_is_refused_with_those_allowed() -> None:
    with pytest.raises(ValueError, match=r"unknown scheme 'ftp'; allowed: a folder, file, memory, s3, gs, az"):
        Store.open("ftp://host/x")


def test_a_folder_and_its_file_url_are_the_same_store(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    Store.open(str(folder)).put("a", b"1")
    opened = Store.open(folder.as_uri())
    assert opened.get("a") == b"1"
    assert opened.url == str(folder)


def test_a_relative_folder_stays_the_same_after_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store.open("here")
    monkeypatch.chdir("/")
    store.put("a", b"1")
    assert store.url == str(tmp_path / "here")
    assert (tmp_path / "here" / "a").read_bytes() == b"1"


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot make the folder"):
        Store.open(str(tmp_path / "file"))


def test_a_listing_may_begin_after_an_object(store: Store) -> None:
    for number in (1, 2, 10, 3):
        store.put(f"log/{number:02d}", b"x")
    store.put("other/99", b"x")
    assert sorted(entry.path for entry in store.entries("log", "log/02")) == ["log/03", "log/10"]
    assert sorted(entry.path for entry in store.entries("log", "log/021")) == ["log/03", "log/10"]
    assert list(store.entries("log", "log/10")) == []
