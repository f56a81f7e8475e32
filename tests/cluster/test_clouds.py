"""The contract of every store, and a publication, on Google's and Azure's protocols."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.ledger import Fenced, Ledger
from cluster.store import Store, StoreError
from tests.cluster.clouds import Azure, Google, serving
from tests.cluster.test_store import (  # noqa: F401 - collected here too, on the stores below
    test_a_creation_whose_answer_was_lost_succeeds_when_repeated,
    test_a_creation_whose_retry_met_itself_is_a_success,
    test_a_look_tells_size_and_age_by_the_store_s_clock,
    test_a_missing_object_is_none_and_no_error,
    test_an_emptied_folder_is_no_folder,
    test_create_is_possible_again_after_delete,
    test_create_keeps_the_first_bytes,
    test_delete_forgives_what_is_already_gone,
    test_folders_are_the_names_directly_below,
    test_more_objects_than_one_page_are_all_listed,
    test_move_takes_the_bytes_along_and_leaves_nothing,
    test_of_sixteen_threads_that_create_exactly_one_wins,
    test_overwriting_leaves_nothing_of_the_old_object,
    test_paths_are_all_objects_below_a_folder_and_no_others,
    test_several_objects_are_all_written,
    test_what_was_put_is_what_is_read,
)

KEY = "ab" * 32


@pytest.fixture(params=["gs", "az"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """An empty store of each kind."""
    monkeypatch.setenv("HEDGEROW_CACHE", str(tmp_path / "cache"))
    with serving(Google if request.param == "gs" else Azure) as url:
        if request.param == "gs":
            monkeypatch.setenv("GOOGLE_BASE_URL", url)
            monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "token")
        else:
            monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", url)
            monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
            monkeypatch.setenv("AZURE_STORAGE_SAS_KEY", "sv=2024-11-04&sig=c2lnbmF0dXJl")
        yield Store.open(f"{request.param}://bucket/a/store")


def test_a_step_is_leased_and_published_once(store: Store) -> None:
    ledger = Ledger(store)
    first = ledger.lease(KEY, "first")
    assert first is not None
    assert ledger.lease(KEY, "early") is None
    second = ledger.lease(KEY, "second", over=1)
    assert second is not None
    made = ledger.publish(second, {f"{number}.bin": b"data" for number in range(12)}, {"metrics": {"loss": 0.1}})
    with pytest.raises(Fenced):
        ledger.publish(first, {"0.bin": b"late"}, {"metrics": {}})
    found = ledger.find(KEY)
    assert found == made
    assert found is not None
    found.verify()
    assert found.read("7.bin") == b"data"


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_a_service_that_is_not_there_is_one_line_before_long(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "token")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_SAS_KEY", "sv=2024-11-04&sig=c2lnbmF0dXJl")
    with serving(Google) as url:
        monkeypatch.setenv("GOOGLE_BASE_URL", url)
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", url)
        gone = Store.open(f"{scheme}://bucket/x")
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"^a: .*error sending request") as failure:
        gone.put("a", b"1")
    assert time.monotonic() - began < 40
    assert "\n" not in str(failure.value)
