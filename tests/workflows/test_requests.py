"""Requests that cannot be meant: one line that says what is wrong, code 2, and nothing is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.runs import Run
from cluster.session import check_address
from cluster.store import Store
from tests.workflows.conftest import SMALL
from tests.workflows.submissions import Called

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """The one line with which a request is refused, asked in an empty folder, in which nothing is made."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.delenv("HEDGEROW_STORE", raising=False)

    def call(*words: str) -> str:
        asked = Called(*words, cwd=here)
        assert (asked.code, asked.out) == (2, ""), asked.err
        assert list(here.iterdir()) == []
        (line,) = asked.err.splitlines()
        return line.removeprefix("hedgerow: ")

    return call


LOOKS = [
    ("runs",),
    ("show", "x"),
    ("top", "--once"),
    ("explain", "ab"),
    ("gc",),
    ("sync",),
    ("resume", "x"),
    ("search", "--resume", "x"),
    ("export", "x", "0"),
]


@pytest.mark.parametrize("words", LOOKS, ids=lambda words: words[0])
def test_whoever_looks_into_a_store_that_is_not_there_makes_none(
    refused: Refused, tmp_path: Path, words: tuple[str, ...]
) -> None:
    folder = tmp_path / "here" / "typo"
    assert refused(*words, "--store", "typo") == f"--store: there is no folder {folder}; a run makes it"
    assert refused(*words, "--store", f"file://{folder}").endswith("typo; a run makes it")


@pytest.mark.parametrize("words", [("top", "--once"), ("runs",), ("run", "quickstart"), ("doctor",)])
def test_a_store_is_not_named_by_nothing(refused: Refused, words: tuple[str, ...]) -> None:
    line = f"{words[0]}: Invalid value for '--store' (env var: 'HEDGEROW_STORE'): it is empty; give a folder"
    assert refused(*words, "--store", "").startswith(line)


@pytest.mark.parametrize("size", ["abc", "-1", "nan"])
@pytest.mark.parametrize("words", [("run", "quickstart"), ("runs",)], ids=["run", "runs"])
def test_a_size_of_the_cache_that_is_none_is_told_before_any_work(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], size: str
) -> None:
    monkeypatch.setenv("HEDGEROW_CACHE_GB", size)
    (tmp_path / "store").mkdir()
    line = refused(*words, "--store", str(tmp_path / "store"))
    assert line == f"HEDGEROW_CACHE_GB: '{size}' is no number of gigabytes; 0 keeps no files"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("run", "quickstart", "--frob"), "run: No such option: --frob (`hedgerow run -h` says more)"),
        (("frob",), "No such command 'frob'. (`hedgerow -h` says more)"),
        (("cluster", "manifest"), "cluster manifest: Missing argument 'target'. (`hedgerow cluster manifest -h` says"),
        (("run", "x", "--wait-for-nodes", "nan"), "allowed: 0 seconds or more, or inf for as long as it takes (found"),
        (("run", "x", "--wait-for-nodes", "-1"), "or inf for as long as it takes (found -1)"),
        (
            ("run", "x", "--rejoin", "1e308"),
            "Invalid value for '--rejoin': allowed: 0 to 525600 minutes, a year (found",
        ),
        (("run", "x", "--rejoin", "nan"), "allowed: 0 to 525600 minutes, a year (found nan)"),
        (("run", "x", "--checkpoint", "nan"), "allowed: 0.1 seconds or more (found nan)"),
        (("run", "x", "--out", ""), "Invalid value for '--out': it is empty; give a folder"),
    ],
)
def test_a_misused_command_line_is_one_line_too(refused: Refused, words: tuple[str, ...], line: str) -> None:
    assert line in refused(*words)


def test_a_command_without_its_words_prints_its_help() -> None:
    asked = Called("cluster")
    assert (asked.code, asked.err) == (2, "")
    assert "Write the files that make a cluster" in asked.out
    assert Called("run", "--help").code == 0


def test_a_step_may_wait_for_nodes_as_long_as_it_takes(refused: Refused) -> None:
    assert refused("run", "nosuch", "--wait-for-nodes", "inf").startswith("no recipe is called 'nosuch'")


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("::1", "; an IPv6 address goes in brackets, as in [::1]:6379"),
        ("fe80::1:6379", "; an IPv6 address goes in brackets, as in [::1]:6379"),
        ("ü:80", "; a host's name is ASCII (xn--... where it has other letters)"),
        ("[::g]:80", ""),
        ("[::1]", ""),
        ("h:٨٠", ""),
        ("h_1 x:80", ""),
    ],
)
def test_an_address_that_no_cluster_can_have_is_told_before_any_work(
    refused: Refused, tmp_path: Path, address: str, hint: str
) -> None:
    line = refused("run", "quickstart", "--store", str(tmp_path / "store"), "--address", address)
    allowed = "allowed are `local`, `auto` and HOST:PORT, where Ray's GCS listens"
    assert line.startswith(f"--address {address}: {allowed}")
    assert line.endswith(hint)


@pytest.mark.parametrize("address", ["[::1]:6379", "10.0.0.1:6379", "my_head.cluster-1:1", "head:65535", "auto"])
def test_an_address_that_a_cluster_can_have_is_taken(address: str) -> None:
    check_address(address)


@pytest.mark.parametrize("name", ["../../../escaped", "/tmp/escaped", "a/b", "a\nb", 7])
@pytest.mark.parametrize("words", [("resume", "run-1"), ("search", "--resume", "run-1")], ids=["resume", "search"])
def test_a_recorded_name_leads_to_no_folder_outside_the_results(
    refused: Refused, tmp_path: Path, disk: Store, words: tuple[str, ...], name: str | int
) -> None:
    Run.open(disk, "run-1", {"name": name, "recipe": SMALL})
    line = refused(*words, "--store", disk.url, "--out", str(tmp_path / "a/b/c/out"))
    assert line == f"run run-1: its record calls the recipe {name!r}, which is no name of one: no / is in it"
    assert not list(tmp_path.rglob("*escaped*"))
