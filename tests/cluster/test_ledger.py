"""Leases, fences and publications, whoever dies and whatever is torn."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cluster.ledger import Damaged, Fenced, Lease, Ledger, Published, folder_of, is_free
from cluster.owner import Owner
from cluster.store import Store, StoreError
from tests.cluster import racing

KEY = "ab" * 32
ROOT = Path(__file__).parents[2]


@contextmanager
def holder(store: Store, key: str = KEY) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease of a step and does nothing more."""
    code = f"""
import sys
from cluster.ledger import Ledger
from cluster.store import Store, StoreError
print(Ledger(Store.open({store.url!r})).lease({key!r}, "theirs").fence, flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def take(ledger: Ledger, attempt: str = "a", over: int = 0) -> Lease:
    lease = ledger.lease(KEY, attempt, over)
    assert lease is not None
    return lease


def publish(ledger: Ledger, lease: Lease, text: bytes = b"data") -> Published:
    return ledger.publish(lease, {"one.bin": text, "two.bin": b"more"}, {"metrics": {"loss": 0.1}})


# ---- leases


def test_one_of_several_processes_gets_each_lease(shared_url: str) -> None:
    results = racing.race(shared_url, racing.takes, racers=4)
    for fences in zip(*results, strict=True):
        assert sorted(fences, key=str) == [1, None, None, None]


def test_a_live_holder_is_not_passed_over(disk: Store) -> None:
    with holder(disk):
        assert Ledger(disk).lease(KEY, "mine") is None


def test_a_killed_holder_is_taken_over_at_once(disk: Store) -> None:
    ledger = Ledger(disk)
    with holder(disk) as process:
        assert ledger.lease(KEY, "early") is None
        process.kill()
        deadline = time.monotonic() + 5  # the kernel's time to end it; it is not even reaped
        while (lease := ledger.lease(KEY, "mine")) is None and time.monotonic() < deadline:
            time.sleep(0.01)
    assert lease is not None
    assert lease.fence == 2


def test_a_process_with_the_number_of_a_dead_holder_is_not_mistaken_for_it() -> None:
    me = Owner.me()
    assert not me.is_gone()
    assert Owner(me.host, me.pid, me.started - 100).is_gone()


def test_a_change_of_the_clock_makes_no_living_holder_look_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    me = Owner.me()
    created, now = psutil.Process.create_time, time.time
    for hours in (-1, 1):
        monkeypatch.setattr(time, "time", lambda hours=hours: now() + 3600 * hours)
        monkeypatch.setattr(psutil.Process, "create_time", lambda self, hours=hours: created(self) + 3600 * hours)
        assert not me.is_gone()
        assert not Owner.from_json(me.to_json()).is_gone()


def test_a_holder_on_another_machine_is_never_called_gone() -> None:
    assert not Owner("another/boot/pid:[1]", 2**30, 0.0).is_gone()


def test_a_silent_holder_is_passed_over_only_by_naming_its_fence(store: Store) -> None:
    ledger = Ledger(store)
    first = take(ledger, "first")
    assert ledger.lease(KEY, "second", over=first.fence - 1) is None
    second = ledger.lease(KEY, "second", over=first.fence)
    assert second is not None
    assert second.fence == 2
    assert ledger.lease(KEY, "third", over=first.fence) is None  # what was seen silent is not the holder any more


def test_a_lease_given_back_can_be_taken(store: Store) -> None:
    ledger = Ledger(store)
    lease = take(ledger)
    ledger.beat(lease, state="released")
    assert take(ledger, "b").fence == 2


def test_a_torn_lease_is_free(disk: Store) -> None:
    ledger = Ledger(disk)
    take(ledger)
    path = f"{folder_of(KEY)}/lease-0001.json"
    whole = disk.get(path) or b""
    for length in range(len(whole)):
        disk.put(path, whole[:length])
        torn = ledger.current_lease(KEY)
        assert torn is not None
        assert is_free(torn)
    assert take(ledger, "b").fence == 2


def test_a_beat_shows_news_and_keeps_the_holder(store: Store) -> None:
    ledger = Ledger(store)
    lease = take(ledger)
    ledger.beat(lease, progress=(1, 2, "half"))
    ledger.beat(lease)
    seen = ledger.current_lease(KEY)
    assert seen is not None
    assert (seen.record["beat"], seen.record["progress"], seen.record["attempt"]) == (2, [1, 2, "half"], "a")


@pytest.mark.parametrize("skew", [-3600, 3600])
def test_a_wrong_clock_neither_frees_nor_blocks_a_lease(
    disk: Store, monkeypatch: pytest.MonkeyPatch, skew: float
) -> None:
    ledger = Ledger(disk)
    right = time.time
    with holder(disk):
        with monkeypatch.context() as clock:
            clock.setattr(time, "time", lambda: right() + skew)
            assert ledger.lease(KEY, "early") is None
            silent = ledger.lease(KEY, "mine", over=1)
            assert silent is not None
            assert publish(ledger, silent).manifest["fence"] == 2
        assert Ledger(disk).find(KEY) is not None


# ---- publications


def test_what_was_published_is_found_with_its_metrics_and_files(store: Store) -> None:
    ledger = Ledger(store)
    assert ledger.find(KEY) is None
    made = publish(ledger, take(ledger))
    found = ledger.find(KEY)
    assert found == made
    assert found is not None
    assert found.metrics == {"loss": 0.1}
    assert (found.read("one.bin"), found.read("two.bin")) == (b"data", b"more")
    found.verify()
    with pytest.raises(KeyError):
        found.read("three.bin")


def test_a_file_cannot_take_the_name_of_the_checkpoints_that_go_when_a_step_is_done(store: Store) -> None:
    ledger = Ledger(store)
    lease = take(ledger)
    with pytest.raises(ValueError, match="a file called 'checkpoint' would go with the step's own"):
        ledger.publish(lease, {"checkpoint": b"state"}, {"metrics": {}})
    ledger.save_checkpoint(lease, b"own")
    published = ledger.publish(lease, {"progress.state": b"state"}, {"metrics": {}})
    ledger.drop_checkpoints(lease)
    assert published.read("progress.state") == b"state"


def test_a_zombie_can_neither_publish_nor_save_nor_touch_the_newer_result(store: Store) -> None:
    ledger = Ledger(store)
    zombie = take(ledger, "zombie")
    newer = take(ledger, "newer", over=1)
    with pytest.raises(Fenced, match="given up"):
        publish(ledger, zombie, b"late")
    with pytest.raises(Fenced, match="given up"):
        ledger.save_checkpoint(zombie, b"late")
    assert ledger.find(KEY) is None
    assert ledger.load_checkpoint(newer) is None
    publish(ledger, newer, b"right")
    with pytest.raises(Fenced):
        publish(ledger, zombie, b"later")
    found = ledger.find(KEY)
    assert found is not None
    assert found.read("one.bin") == b"right"
    found.verify()


def test_two_holders_that_both_pass_the_fence_make_one_publication(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(store)
    first, second = take(ledger, "first"), take(ledger, "second", over=1)
    monkeypatch.setattr(ledger, "is_fenced", lambda lease: False)  # both looked before the other was there
    publish(ledger, first, b"first")
    with pytest.raises(Fenced, match="already published"):
        publish(ledger, second, b"second")
    found = ledger.find(KEY)
    assert found is not None
    assert (found.manifest["attempt"], found.read("one.bin")) == ("first", b"first")


def test_a_flipped_byte_in_a_file_is_found_and_named(disk: Store) -> None:
    ledger = Ledger(disk)
    found = publish(ledger, take(ledger), bytes(100))
    path = found.manifest["files"]["one.bin"]["path"]
    for position in (0, 57, 99):
        data = bytearray(100)
        data[position] ^= 1
        disk.put(path, bytes(data))
        with pytest.raises(Damaged, match=r"one\.bin is damaged: its bytes are not those") as damaged:
            found.verify()
        assert (damaged.value.key, damaged.value.name) == (KEY, "one.bin")
        assert found.read("two.bin") == b"more"


def test_a_missing_or_cut_file_is_found(disk: Store) -> None:
    ledger = Ledger(disk)
    found = publish(ledger, take(ledger))
    path = found.manifest["files"]["two.bin"]["path"]
    disk.put(path, b"mor")
    with pytest.raises(Damaged, match=r"two\.bin"):
        found.verify()
    disk.delete([path])
    with pytest.raises(Damaged, match=r"two\.bin is damaged: missing"):
        found.verify()


def test_no_flipped_bit_of_a_manifest_changes_what_is_found(disk: Store) -> None:
    ledger = Ledger(disk)
    made = publish(ledger, take(ledger))
    path = f"{folder_of(KEY)}/manifest.json"
    whole = disk.get(path) or b""
    named = []
    for position in range(len(whole)):
        for bit in (1, 32):
            flipped = bytearray(whole)
            flipped[position] ^= bit
            disk.put(path, bytes(flipped))
            try:
                assert ledger.find(KEY) == made  # the same JSON in other words
            except Damaged as damaged:
                named.append(damaged.name)
    assert set(named) == {"manifest.json"}
    assert len(named) > 1.9 * len(whole)


def test_a_manifest_torn_anywhere_is_damaged(disk: Store) -> None:
    ledger = Ledger(disk)
    publish(ledger, take(ledger))
    path = f"{folder_of(KEY)}/manifest.json"
    whole = disk.get(path) or b""
    for length in range(len(whole)):
        disk.put(path, whole[:length])
        with pytest.raises(Damaged, match=r"manifest\.json"):
            ledger.find(KEY)


@pytest.mark.parametrize("text", [b"[]", b"[1]", b"null", b"7", b'"text"', b"{}", b"\x00" * 40, b"\xff\xfe"])
def test_what_is_no_manifest_is_damaged(disk: Store, text: bytes) -> None:
    disk.put(f"{folder_of(KEY)}/manifest.json", text)
    with pytest.raises(Damaged, match="not a manifest"):
        Ledger(disk).find(KEY)


def test_the_manifest_of_another_step_is_damaged(disk: Store) -> None:
    ledger = Ledger(disk)
    publish(ledger, take(ledger))
    other = "cd" * 32
    disk.put(f"{folder_of(other)}/manifest.json", disk.get(f"{folder_of(KEY)}/manifest.json") or b"")
    with pytest.raises(Damaged):
        ledger.find(other)


@pytest.mark.parametrize("name", ["one.bin", "manifest.json"])
def test_what_is_set_aside_is_kept_and_the_step_can_be_computed_anew(store: Store, name: str) -> None:
    ledger = Ledger(store)
    lease = take(ledger)
    found = publish(ledger, lease)
    ledger.beat(lease, state="done")
    path = found.manifest["files"][name]["path"] if name in found.manifest["files"] else _manifest()
    store.put(path, b"broken")
    aside = ledger.set_aside(Damaged(KEY, name, "broken"))
    assert aside is not None
    assert store.get(f"{aside}/{name}") == b"broken"
    assert store.exists(f"{aside}/manifest.json")
    assert ledger.find(KEY) is None
    again = publish(ledger, take(ledger, "again"))
    again.verify()
    assert ledger.find(KEY) == again


def test_a_late_report_of_mended_damage_moves_nothing(store: Store) -> None:
    ledger = Ledger(store)
    lease = take(ledger)
    found = publish(ledger, lease)
    ledger.beat(lease, state="done")
    store.put(found.manifest["files"]["one.bin"]["path"], b"broken")
    with pytest.raises(Damaged) as damaged:
        found.verify()
    assert ledger.set_aside(damaged.value) is not None
    assert ledger.set_aside(damaged.value) is None
    again = publish(ledger, take(ledger, "again"))
    assert ledger.set_aside(damaged.value) is None
    assert ledger.find(KEY) == again


# ---- checkpoints


def test_a_later_attempt_finds_the_newest_checkpoint_of_an_earlier_one(store: Store) -> None:
    ledger = Ledger(store)
    first = take(ledger, "first")
    assert ledger.load_checkpoint(first) is None
    ledger.save_checkpoint(first, b"state 1")
    ledger.save_checkpoint(first, b"state 2")
    second = take(ledger, "second", over=1)
    assert ledger.load_checkpoint(second) == b"state 2"
    ledger.save_checkpoint(second, b"state 3")
    third = take(ledger, "third", over=2)
    assert ledger.load_checkpoint(third) == b"state 3"
    ledger.drop_checkpoints(third)
    assert ledger.load_checkpoint(third) is None


def test_a_damaged_checkpoint_is_ignored_and_an_older_one_used(disk: Store) -> None:
    ledger = Ledger(disk)
    ledger.save_checkpoint(take(ledger, "first"), b"older")
    ledger.save_checkpoint(take(ledger, "second", over=1), b"newer")
    third = take(ledger, "third", over=2)
    path = f"{folder_of(KEY)}/0002/checkpoint"
    whole = disk.get(path) or b""
    for length in range(len(whole)):
        disk.put(path, whole[:length])
        assert ledger.load_checkpoint(third) == b"older"
    disk.put(path, whole[:-1] + b"R")
    assert ledger.load_checkpoint(third) == b"older"
    disk.put(path, whole)
    assert ledger.load_checkpoint(third) == b"newer"


def test_a_manifest_names_every_file_with_its_digest_and_size(disk: Store) -> None:
    ledger = Ledger(disk)
    publish(ledger, take(ledger))
    manifest = json.loads(disk.get(_manifest()) or b"")
    assert {name: entry["size"] for name, entry in manifest["files"].items()} == {"one.bin": 4, "two.bin": 4}
    for entry in manifest["files"].values():
        assert len(entry["sha256"]) == 64
        assert disk.exists(entry["path"])


def _manifest() -> str:
    return f"{folder_of(KEY)}/manifest.json"


def test_a_publication_that_found_no_room_leaves_none_of_its_files(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(store)
    lease = take(ledger)
    put = store.put

    def put_until_full(path: str, data: bytes) -> None:
        if path.endswith("two.bin"):
            raise StoreError("no room")
        put(path, data)

    monkeypatch.setattr(store, "put", put_until_full)
    with pytest.raises(StoreError, match="no room"):
        publish(ledger, lease)
    assert [path.rsplit("/", 1)[-1] for path in store.paths("")] == ["lease-0001.json"]
