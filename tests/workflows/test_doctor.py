"""What the doctor finds, and that it keeps secrets."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster.store import Store
from tasks.component import members
from tasks.data import Dataset
from workflows.command import cli, doctor
from workflows.command.check import Check, checks_table
from workflows.command.doctor_cluster import check_cluster


def by_name(checks: Any) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN", "WANDB_API_KEY", "WANDB_MODE", "NETRC", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_good_store_is_found_good_and_left_as_it_was(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    found = by_name(doctor._store(store.url))
    assert {check.state for check in found.values()} == {"ok"}
    assert found.keys() == {"store", "conditional puts", "clock"}
    assert not list(store.paths(""))


@pytest.mark.parametrize(("overwrites", "tells"), [(True, False), (True, True), (False, False)])
def test_a_store_that_ignores_conditions_is_wrong(
    overwrites: bool, tells: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(self: Store, path: str, data: bytes) -> bool:
        was_there = self.exists(path)
        if overwrites or not was_there:
            self.put(path, data)
        return not (was_there and tells)

    monkeypatch.setattr(Store, "create", careless)
    assert by_name(doctor._store(str(tmp_path)))["conditional puts"].state == "wrong"


def test_a_clock_that_is_off_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = Store.clock
    monkeypatch.setattr(Store, "clock", lambda self: true(self) + 3600)
    check = by_name(doctor._store(str(tmp_path)))["clock"]
    assert (check.state, check.found[:6]) == ("warn", "3600.0")


def test_an_unreachable_store_is_one_wrong_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (check,) = doctor._store(str(tmp_path / "file"))
    assert (check.state, bool(check.advice)) == ("wrong", True)


@pytest.mark.parametrize(("mode", "state"), [(0o600, "ok"), (0o644, "warn"), (0o640, "warn")])
def test_a_token_that_others_can_read_is_told_and_never_shown(home: Path, mode: int, state: str) -> None:
    (home / ".ray").mkdir()
    token = home / ".ray" / "auth_token"
    token.write_text("secret-token")
    token.chmod(mode)
    check = doctor._ray_token("local")
    assert check.state == state
    assert "secret" not in str(check.record())


def test_a_cluster_without_a_token_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert doctor._ray_token("host:6379").state == "warn"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret-token")
    check = doctor._ray_token("host:6379")
    assert (check.state, "secret" in str(check.record())) == ("ok", False)


def test_a_lone_file_is_a_token_and_never_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("secret-token")
    (home / ".ray" / "auth_token").chmod(0o600)
    check = doctor._ray_token("host:6379")
    assert (check.state, "secret" in str(check.record())) == ("ok", False)


def test_a_key_for_tracking_is_noticed_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "offline" in doctor._tracking().found
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    check = doctor._tracking()
    assert "key found" in check.found
    assert "0123" not in str(check.record())


def test_more_threads_than_cpus_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._thread_environment(2).state == "ok"
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    check = doctor._thread_environment(2)
    assert (check.state, check.found) == ("warn", "OMP_NUM_THREADS=64")


def test_nothing_listening_at_an_address_is_noticed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    found = by_name(check_cluster("127.0.0.1:9", str(tmp_path / "store")))
    assert found["ray session"].state == "wrong"
    assert "refused" in found["ray session"].found


def test_data_sets_that_are_here_are_told_from_those_that_are_not(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEDGEROW_CACHE", str(home / "cache"))
    monkeypatch.setenv("HEDGEROW_DATA", str(home / "nowhere"))
    ours = {kind: member for kind, member in members(Dataset).items() if member.__module__.startswith("tasks.")}
    monkeypatch.setattr(doctor, "members", lambda family: ours)  # without the toys of other tests
    found = by_name(doctor._data())
    here, missing = found["data sets"].found.split("; not here: ")
    assert here == "found mnist-mini"
    assert "cifar10" in missing
    assert found["HEDGEROW_DATA"].state == "warn"


def test_whatever_is_not_ok_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ROOM", 1e9)
    monkeypatch.setattr(doctor, "MEMORY_A_CPU", 1e9)
    checks = [*doctor._software(), *doctor._machine(), *doctor._disks(str(tmp_path / "store"))]
    assert {check.name for check in checks if check.state == "warn"} >= {"memory", "disk of the store"}
    assert all(check.advice for check in checks if check.state != "ok")
    assert not os.path.exists(tmp_path / "store")
    assert checks_table(checks).row_count == len(checks)


def test_on_a_terminal_each_check_is_said_as_soon_as_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    seen: list[str] = []

    def checks(*where: str) -> Iterator[Check]:
        yield Check("python", "ok", "3.13")
        seen.append(shown.getvalue())
        yield Check("store", "wrong", "it [is] away", "start it")

    monkeypatch.setattr(doctor, "check_all", checks)
    monkeypatch.setattr(cli, "out", Console(file=shown, force_terminal=True, no_color=True, width=200))
    assert CliRunner().invoke(cli.app, ["doctor"]).exit_code == 3
    assert "python" in seen[0]
    assert "3.13" in seen[0]
    assert "it [is] away" in shown.getvalue()
    assert "-> start it" in shown.getvalue()
    assert shown.getvalue().count("python") == 1
