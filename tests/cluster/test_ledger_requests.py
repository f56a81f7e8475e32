"""What the ledger asks of a store, and in which order."""

from __future__ import annotations

import time

import pytest

from cluster.ledger import Ledger
from cluster.store import Store
from tests.cluster.test_ledger import take


def test_the_manifest_is_written_when_all_files_are_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(store)
    lease = take(ledger)
    files = {f"{number}.bin": bytes([number]) for number in range(20)}
    put, create, there = store.put, store.create, []

    def put_slowly(path: str, data: bytes) -> None:
        time.sleep(0.001 * (data[0] % 7))
        put(path, data)
        there.append(path.rsplit("/", 1)[-1])

    def create_last(path: str, data: bytes) -> bool:
        assert sorted(there) == sorted(files)
        return create(path, data)

    monkeypatch.setattr(store, "put", put_slowly)
    monkeypatch.setattr(store, "create", create_last)
    published = ledger.publish(lease, files, {"metrics": {}})
    assert {name: published.read(name) for name in files} == files
    assert list(published.manifest["files"]) == sorted(files)  # whichever came first


def test_the_lease_of_a_new_step_is_one_request_and_of_a_known_one_a_walk(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, asked = Ledger(disk), []
    for verb in ("get", "create"):
        real = getattr(disk, verb)
        monkeypatch.setattr(
            disk, verb, lambda path, *rest, real=real, verb=verb: (asked.append(verb), real(path, *rest))[1]
        )
    first = take(ledger)
    assert asked == ["create"]
    ledger.beat(first, state="released")
    assert take(ledger, "b").fence == 2
    assert asked.count("create") == 3
