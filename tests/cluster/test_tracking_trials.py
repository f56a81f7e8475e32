"""The trials of a search are W&B runs of one group, and what a search comes to is a table beside them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.follower import table_of
from cluster.tracking import sync
from tests.cluster.tracked import METRICS, Driver, keys, offline_runs, rows, until

PARAMETERS = {"levels": 3, "train.objective": "trades", "attack": [100, 1]}
TOLD = {
    "number": 3,
    "state": "stopped",
    "because": "dominated at rung 1",
    "parameters": PARAMETERS,
    "figures": {"clean": 0.5, "robust@0.1": 0.25},
    "rungs": {"1": {"robust@0.1": 0.125}},
    "steps": {"0" * 64: 12},
}
FRONT = [
    {"trial": 3, "parameters": PARAMETERS, "figures": {"clean": 0.5}, "test": {"clean": 0.4}},
    {"trial": 5, "parameters": {"levels": 2, "train.objective.beta": 2.5}, "figures": {"clean": 0.75}, "test": {}},
]


@pytest.fixture(autouse=True)
def _nothing_of_wandb_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for kind in ("CONFIG", "CACHE"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / "wandb-home"))


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    driver = Driver(tmp_path)
    yield driver
    driver.log.close()


def search(driver: Driver) -> None:
    """What a search of two trials publishes; they share a step, which is at the first of them."""
    for number in (3, 5):
        driver.publish({"trial": number}, "ask", {"parameters": PARAMETERS if number == 3 else {"levels": 2}})
    driver.publish({"trial": 3, "replicate": 0, "level": 1}, "evaluate", METRICS)
    driver.publish({"trial": 3, "replicate": 1, "level": 1}, "evaluate", METRICS)
    driver.publish({"trial": 5, "split": "test"}, "evaluate", METRICS)
    driver.publish({"trial": 3}, "trial", TOLD)
    driver.publish({}, "front", {"front": FRONT, "audit": {"wrong": 1}})


def about(records: list[dict[str, Any]]) -> dict[str, Any]:
    return next(record["run"] for record in records if record["type"] == "run")


def config(records: list[dict[str, Any]]) -> dict[str, Any]:
    updates = [record["config"]["update"] for record in records if record["type"] == "config"]
    found: dict[str, Any] = about(records)["config"]["update"]
    for update in updates:
        found = {**found, **update}
    return found


def test_a_trial_is_a_wandb_run_with_all_that_happened_in_it(driver: Driver, tmp_path: Path) -> None:
    tracker = driver.track()
    search(driver)
    driver.log.close()
    assert tracker.stop() == ""

    third, fifth = (offline_runs(driver.results, {"trial": number})[0] for number in (3, 5))
    assert about(third)["run_id"] == hashlib.sha256(b'run1 {"trial":3}').hexdigest()[:16]
    assert about(third)["run_group"] == about(fifth)["run_group"] == "run1"
    assert about(third)["display_name"] == "trial 3"
    assert config(third)["parameters"] == PARAMETERS
    assert config(third)["at"] == {"trial": 3}
    assert config(fifth)["parameters"] == {"levels": 2}

    _, first, second, told = (row for _, row in rows(third))
    assert [(row["replicate"], row["level"]) for row in (first, second)] == [(0, 1), (1, 1)]
    assert first["evaluate/robust/0.1/accuracy"] == 0.25
    assert told.pop("key")
    assert told == {
        "trial/number": 3,
        "trial/state": "stopped",
        "trial/because": "dominated at rung 1",
        "trial/figures/clean": 0.5,
        "trial/figures/robust@0.1": 0.25,
        "trial/rungs/1/robust@0.1": 0.125,
    }
    assert rows(fifth)[1][1]["split"] == "test"


def test_what_a_search_comes_to_is_a_table(driver: Driver, tmp_path: Path) -> None:
    search(driver)
    driver.log.close()
    assert sync(driver.store, "run1", driver.results, "offline") == {"run1": 7}
    (records,) = offline_runs(driver.results, {"job": "study"})
    assert (about(records)["job_type"], about(records)["run_group"]) == ("study", "run1")
    ((_, row),) = rows(records)
    assert row["front/audit/wrong"] == 1
    assert row["front._type"] == "table-file"
    (folder,) = driver.results.glob(f"wandb/offline-run-*-{about(records)['run_id']}")
    assert json.loads((folder / "files" / row["front.path"]).read_text()) == {
        "columns": [
            "trial",
            "figures/clean",
            "parameters/attack",
            "parameters/levels",
            "parameters/train.objective",
            "test/clean",
            "parameters/train.objective.beta",
        ],
        "data": [[3, 0.5, "[100, 1]", 3, "trades", 0.4, None], [5, 0.75, None, 2, None, None, 2.5]],
    }
    assert not (tmp_path / "home").exists()
    assert offline_runs(driver.results, {}) == []


def test_a_killed_tracker_of_a_search_is_made_up_for(driver: Driver) -> None:
    tracker = driver.track()
    driver.publish({"trial": 3}, "ask", {"parameters": PARAMETERS})
    until(lambda: b'"next": {"' in (driver.store.get("runs/run1/tracking-offline.json") or b""))
    assert tracker.pid is not None
    os.kill(tracker.pid, signal.SIGKILL)
    search(driver)
    driver.log.close()
    assert "hedgerow sync run1" in tracker.stop()
    assert sync(driver.store, None, driver.results, "offline") == {"run1": 7}
    assert sync(driver.store, None, driver.results, "offline") == {"run1": 0}
    late = offline_runs(driver.results, {"trial": 3})[-1]
    assert len(keys(late)) == 4
    assert rows(late)[0][0] == 1  # beyond what the killed one may have used
    assert config(late)["parameters"] == PARAMETERS


def test_elsewhere_parameters_and_steps_are_numbers_like_any_other(driver: Driver) -> None:
    driver.publish({"replicate": 0}, "size", {"parameters": {"conv": 8}, "steps": {"warm": 2}, "state": "done"})
    driver.publish({}, "front", {"front": []})
    driver.log.close()
    assert sync(driver.store, "run1", driver.results, "offline") == {"run1": 2}
    (records,) = offline_runs(driver.results, {"replicate": 0})
    ((_, row),) = rows(records)
    assert {name: value for name, value in row.items() if name != "key"} == {
        "size/parameters/conv": 8,
        "size/steps/warm": 2,
    }
    assert "parameters" not in config(records)


def test_a_table_has_a_column_for_whatever_one_of_its_records_has() -> None:
    table = table_of([{"a": {"b": 1}}, {"c": [1, 2], "a": {}}])
    assert (table.columns, table.rows) == (["c", "a/b"], [[None, 1], ["[1, 2]", None]])
