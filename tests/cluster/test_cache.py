"""A cache that is never stale, never too large, nobody else's business, and never the reason why a step fails."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cluster.cache import Cache
from cluster.ledger import Damaged, Ledger, Published
from cluster.store import Store
from tests.cluster.conftest import BUCKET
from tests.cluster.test_store_faults import _in_own_mounts

KEY = "ab" * 32


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def kept(cache: Cache, data: bytes, age: int = 0) -> Path:
    """Keeps bytes as if they had last been read so many seconds ago."""
    cache.keep(digest(data), data)
    path = cache.folder / digest(data)
    if age:
        read = path.stat().st_mtime - age
        os.utime(path, (read, read))
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 10_000)


# ---- the folder


def test_what_was_kept_is_read_and_nothing_else(cache: Cache) -> None:
    for data in (b"", b"x", bytes(range(256)) * 10):
        assert cache.read(digest(data)) is None
        kept(cache, data)
        assert cache.read(digest(data)) == data


@pytest.mark.parametrize("damage", [b"", b"dat", b"dat4", b"data and more"])
def test_a_damaged_file_is_dropped_and_never_used(cache: Cache, damage: bytes) -> None:
    path = kept(cache, b"data")
    path.write_bytes(damage)
    assert cache.read(digest(b"data")) is None
    assert not path.exists()
    kept(cache, b"data")
    assert cache.read(digest(b"data")) == b"data"


def test_the_longest_unread_go_first(cache: Cache) -> None:
    old, older, oldest = (bytes([number]) * 3000 for number in (1, 2, 3))
    for data, age in ((old, 10), (older, 20), (oldest, 30)):
        kept(cache, data, age)
    assert cache.read(digest(oldest)) is not None  # and so it is the newest now
    kept(cache, b"n" * 3000)
    assert cache.read(digest(older)) is None
    assert [cache.read(digest(data)) for data in (old, oldest)] == [old, oldest]


def test_the_cap_holds_at_every_moment(cache: Cache) -> None:
    for number in range(50):
        kept(cache, bytes([number]) * (500 + 97 * number % 3000))
        assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= 10_000


def test_what_is_larger_than_the_cap_drives_nothing_out(cache: Cache) -> None:
    kept(cache, b"small")
    kept(cache, b"l" * 10_001)
    assert cache.read(digest(b"small")) == b"small"
    assert len(list(cache.folder.iterdir())) == 1


def test_a_part_that_a_killed_writer_left_counts_and_goes_in_its_turn(cache: Cache) -> None:
    kept(cache, b"")
    part = cache.folder / f"{digest(b'whole')}.0123abcd"
    part.write_bytes(b"p" * 9000)
    os.utime(part, (1, 1))
    assert cache.read(digest(b"whole")) is None
    kept(cache, b"n" * 5000)
    assert not part.exists()


def test_nothing_but_files_of_the_cache_is_removed(cache: Cache) -> None:
    kept(cache, b"")
    (cache.folder / "thesis.tex").write_bytes(b"t" * 20_000)
    (cache.folder / "folder").mkdir()
    for number in range(10):
        kept(cache, bytes([number]) * 4000)
    assert (cache.folder / "thesis.tex").stat().st_size == 20_000


def test_the_folder_and_its_files_are_their_owners_alone(tmp_path: Path) -> None:
    shared = tmp_path / "cache"
    shared.mkdir(mode=0o755)
    for cache in (Cache(tmp_path / "new" / "deep", 100), Cache(shared, 100)):
        path = kept(cache, b"secret")
        assert cache.folder.stat().st_mode & 0o777 == 0o700
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_link_in_the_place_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    (tmp_path / "cache").symlink_to(home)
    Cache(tmp_path / "cache", 100).keep(digest(b"x"), b"x")
    assert list(home.iterdir()) == []
    assert home.stat().st_mode & 0o777 == 0o755


def test_threads_and_processes_share_it_without_harm(tmp_path: Path) -> None:
    code = """
import hashlib, random, sys
from pathlib import Path
from cluster.cache import Cache
cache, draw = Cache(Path(sys.argv[1]), 20_000), random.Random(int(sys.argv[2]))
for _ in range(150):
    data = bytes([draw.randrange(20)]) * 4000
    name = hashlib.sha256(data).hexdigest()
    found = cache.read(name)
    assert found in (None, data)
    if found is None:
        cache.keep(name, data)
"""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "cache"), str(racer)], cwd=Path(__file__).parents[2]
        )
        for racer in range(3)
    ]
    assert [racer.wait(60) for racer in racers] == [0, 0, 0]
    files = list((tmp_path / "cache").iterdir())
    assert files
    assert all(digest(path.read_bytes()) == path.name for path in files)
    assert sum(path.stat().st_size for path in files) <= 20_000 + 2 * 4000  # each may add one at the same moment


# ---- what the environment says


def test_the_environment_names_the_folder_and_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEDGEROW_CACHE", str(tmp_path))
    monkeypatch.setenv("HEDGEROW_CACHE_GB", "0.5")
    assert Cache.here() == Cache(tmp_path / f"files-{os.geteuid()}", 500_000_000)
    monkeypatch.setenv("HEDGEROW_CACHE_GB", "0")
    assert Cache.here() is None


@pytest.mark.parametrize("number", ["ten", "-1", "nan", "inf"])
def test_a_size_that_is_none_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    monkeypatch.setenv("HEDGEROW_CACHE_GB", number)
    with pytest.raises(
        ValueError, match=rf"^HEDGEROW_CACHE_GB: '{number}' is no number of gigabytes; 0 keeps no files$"
    ):
        Cache.here()


# ---- no place for it


def test_a_place_that_cannot_be_used_is_no_cache_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/cache")):
        cache = Cache(place, 100)
        cache.keep(digest(b"x"), b"x")
        assert cache.read(digest(b"x")) is None


def test_a_full_or_read_only_disk_is_no_cache_and_no_error(tmp_path: Path) -> None:
    code = f"""
import hashlib, subprocess
from pathlib import Path
from cluster.cache import Cache
cache = Cache(Path({str(tmp_path)!r}) / "cache", 10**9)
name = lambda data: hashlib.sha256(data).hexdigest()
small, large = b"s" * 10_000, b"l" * 120_000
cache.keep(name(small), small)
cache.keep(name(large), large)  # more than half of what is free
print(cache.read(name(small)) == small, cache.read(name(large)))
with open({str(tmp_path / "ballast")!r}, "wb", buffering=0) as ballast:
    try:
        while True:
            ballast.write(bytes(4096))
    except OSError as error:
        print(error.strerror)
cache._make_room = lambda needed: True  # another process took the room at the last moment
cache.keep(name(large), large)
print(cache.read(name(large)), cache.read(name(small)) == small, len(list(cache.folder.iterdir())))
subprocess.run(["mount", "-o", "remount,ro", {str(tmp_path)!r}], check=True)
cache.keep(name(b"x"), b"x")
print(cache.read(name(b"x")), cache.read(name(small)) == small)
""".replace("cache._make_room =", "Cache._make_room =").replace("lambda needed", "lambda self, needed")
    mounts = f"mount -t tmpfs -o size=200k tmpfs '{tmp_path}'"
    answer = _in_own_mounts(f"{mounts}\n{sys.executable} - <<'END'\n{code}END\n", tmp_path)
    assert answer.stdout == "True None\nNo space left on device\nNone True 1\nNone True\n", answer.stderr


# ---- between publications and their readers


class _Counts:
    """A backend that counts what is read from it."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self.read: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def get(self, path: str, **how: Any) -> Any:
        with self._lock:
            self.read.append(path.rsplit("/", 1)[-1])
        return self._backend.get(path, **how)


def published(store: Store, data: bytes = b"data") -> Published:
    ledger = Ledger(store)
    lease = ledger.lease(KEY, "a")
    assert lease is not None
    ledger.publish(lease, {"one.bin": data}, {"metrics": {}})
    found = ledger.find(KEY)
    assert found is not None
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this user's cache is."""
    monkeypatch.setenv("HEDGEROW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / f"files-{os.geteuid()}"


@pytest.fixture
def far(s3_server: str, place: Path) -> tuple[Store, _Counts]:
    """An empty remote store that counts what is read from it."""
    store = Store.open(f"s3://{BUCKET}/{uuid4().hex}")
    counts = _Counts(store._backend)
    return Store(store.url, counts), counts


def test_a_file_of_a_remote_store_travels_once_to_a_machine(far: tuple[Store, _Counts]) -> None:
    store, counts = far
    step = published(store)
    assert [step.read("one.bin") for _ in range(3)] == [b"data"] * 3
    assert counts.read.count("one.bin") == 1


def test_a_damaged_cached_file_is_fetched_again(far: tuple[Store, _Counts], place: Path) -> None:
    store, counts = far
    step = published(store)
    step.read("one.bin")
    (place / digest(b"data")).write_bytes(b"dat4")
    assert step.read("one.bin") == b"data"
    assert counts.read.count("one.bin") == 2
    assert (place / digest(b"data")).read_bytes() == b"data"


def test_damage_in_the_store_is_seen_and_set_aside_though_the_cache_is_whole(far: tuple[Store, _Counts]) -> None:
    store, _ = far
    step = published(store)
    step.read("one.bin")
    store.put(step.manifest["files"]["one.bin"]["path"], b"dat4")
    assert step.read("one.bin") == b"data"
    with pytest.raises(Damaged, match=r"one\.bin is damaged") as damaged:
        step.verify()
    assert Ledger(store).set_aside(damaged.value) is not None


def test_what_is_damaged_in_the_store_does_not_get_into_the_cache(far: tuple[Store, _Counts], place: Path) -> None:
    store, _ = far
    step = published(store)
    store.put(step.manifest["files"]["one.bin"]["path"], b"dat4")
    with pytest.raises(Damaged):
        step.read("one.bin")
    assert not place.exists()


def test_a_folder_is_read_as_it_is(disk: Store, place: Path) -> None:
    assert published(disk).read("one.bin") == b"data"
    assert not place.exists()


def test_readers_side_by_side_all_get_the_file(far: tuple[Store, _Counts]) -> None:
    store, _ = far
    step = published(store, b"d" * 100_000)
    with ThreadPoolExecutor(8) as readers:
        assert set(readers.map(lambda _: step.read("one.bin"), range(16))) == {b"d" * 100_000}
