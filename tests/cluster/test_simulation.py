"""The engine, watch, worker, ledger and store code in thousands of simulated worlds where everything goes wrong."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster import ledger, worker
from cluster.failures import Budget
from cluster.ledger import Lease, Ledger, Published
from cluster.store import Store, StoreError
from cluster.watch import Pulse, Watch
from tests.cluster.simulation.faults import KINDS
from tests.cluster.simulation.schedules import explore, fail_with, gray
from tests.cluster.simulation.simulation import digest_of

ROOT = Path(__file__).parents[2]
ENOUGH = 400
"""Schedules within which each planted bug is found."""


@pytest.mark.timeout(900)
def test_five_thousand_schedules_publish_once_lose_nothing_and_end() -> None:
    verdicts = [explore(seed) for seed in range(5_000)]
    fail_with(verdicts)
    assert {kind for verdict in verdicts for kind in verdict.faults} == set(KINDS)


@pytest.mark.timeout(900)
def test_a_step_on_a_partitioned_or_frozen_node_is_at_work_elsewhere_within_30_seconds() -> None:
    verdicts = [gray(seed) for seed in range(400)]
    fail_with(verdicts, " gray")
    recoveries = sorted(seconds for verdict in verdicts for seconds in verdict.recoveries)
    assert len(recoveries) > 200
    p50, p95 = recoveries[len(recoveries) // 2], recoveries[len(recoveries) * 95 // 100]
    print(f"recovery: p50 {p50:.1f} s, p95 {p95:.1f} s, most {recoveries[-1]:.1f} s")  # noqa: T201
    assert recoveries[-1] <= 30


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_thousand_more_schedules_hold() -> None:
    fail_with(verdict for seed in range(1_000_000, 1_200_000) if (verdict := explore(seed)).violations)


def test_a_seed_is_one_schedule_in_every_process() -> None:
    seeds = [1, 33, 87, 140, 520]
    program = (
        "from tests.cluster.simulation.schedules import explore\n"
        "from tests.cluster.simulation.simulation import digest_of\n"
        f"print(*[digest_of(explore(seed, tracing=True).trace) for seed in {seeds}])"
    )
    mine = [digest_of(explore(seed, tracing=True).trace) for seed in seeds]
    assert mine == [digest_of(explore(seed, tracing=True).trace) for seed in seeds]
    assert len(set(mine)) == len(seeds)
    for hashing in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hashing}
        answer = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        assert answer.stdout.split() == mine


def test_a_schedule_is_replayed_from_the_command_line() -> None:
    command = [sys.executable, "-m", "tests.cluster.simulation", "33"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "start of driver1" in answer.stdout
    assert "FAULT" in answer.stdout


def found(words: str) -> None:
    """Explores until what the planted bug breaks is seen to be violated."""
    others = set()
    for seed in range(ENOUGH):
        violations = explore(seed).violations
        if any(words in violation for violation in violations):
            return
        others.update(violations)
    raise AssertionError(f"not found within {ENOUGH} schedules, but {sorted(others)[:10]}")


def test_found_when_a_publication_replaces_another(monkeypatch: pytest.MonkeyPatch) -> None:
    create = Store.create

    def careless(self: Store, path: str, data: bytes) -> bool:
        if not path.endswith("manifest.json"):
            return create(self, path, data)
        self.put(path, data)
        return True

    monkeypatch.setattr(Store, "create", careless)
    monkeypatch.setattr(Ledger, "is_fenced", lambda self, lease: False)
    found("was replaced by another")


def test_found_when_a_lease_is_taken_from_a_living_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pulse, "stopped", lambda self, *beat: True)
    found("alive and beating")


def test_found_when_a_silent_attempt_is_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pulse, "stopped", lambda self, *beat: False)
    found("does not end")


def test_found_when_checkpoints_are_written_under_another_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    path = ledger._checkpoint_path
    monkeypatch.setattr(ledger, "_checkpoint_path", lambda key, fence: path(key, 1))
    found("under a fence that its writer does not hold")


def test_found_when_a_damaged_file_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def unchecked(self: Published, name: str) -> bytes:
        return self.store.get(self.manifest["files"][name]["path"]) or b""

    monkeypatch.setattr(Published, "stored", unchecked)
    found("is not what it should be")


def test_found_when_a_manifest_is_written_though_a_file_was_not(monkeypatch: pytest.MonkeyPatch) -> None:
    put_all = Store.put_all

    def careless(self: Store, objects: Mapping[str, bytes]) -> None:
        with contextlib.suppress(StoreError):
            put_all(self, objects)

    monkeypatch.setattr(Store, "put_all", careless)
    found("was published before its file")


def test_found_when_two_believe_that_they_created_the_same_object(monkeypatch: pytest.MonkeyPatch) -> None:
    create = Store.create

    def careless(self: Store, path: str, data: bytes) -> bool:
        create(self, path, data)
        return True

    monkeypatch.setattr(Store, "create", careless)
    found("overwritten by another attempt")


def test_found_when_a_mistake_in_a_task_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budget, "spend", lambda self, cause, made_progress: True)
    found("times after")


def test_found_when_leases_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(self: Ledger, key: str, attempt: str, over: int = 0, about: Any = None) -> Any:
        return lease(self, key, attempt, over=10_000, about=about)

    lease = Ledger.lease
    monkeypatch.setattr(Ledger, "lease", taken)
    found("alive and beating")


def test_found_when_a_blind_driver_takes_the_outage_of_the_store_for_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pulse, "could_not_look", lambda self: None)
    found("alive and beating")


def test_found_when_an_answer_that_was_long_on_its_way_counts_as_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pulse, "looked", lambda self, asked: None)
    found("alive and beating")


def test_found_when_a_leaving_node_takes_its_steps_along(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody(self: Watch, lease: Lease) -> None:
        pass

    monkeypatch.setattr(Watch, "_take_along", nobody)
    found("does not leave as it was asked to")


def test_found_when_an_attempt_does_not_hear_that_it_should_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "is_asked_to_leave", lambda store, order: False)
    found("does not leave as it was asked to")


def test_found_when_checkpoints_are_not_gone_on_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "load_checkpoint", lambda self, lease: None)
    found("though a checkpoint holds")


def test_found_when_an_attempt_leaves_without_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(self: Ledger, lease: Lease, state: bytes) -> None:
        pass

    monkeypatch.setattr(Ledger, "save_checkpoint", forgetful)
    found("saved")
