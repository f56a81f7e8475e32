"""Every command says the same of a run: whether somebody is at work on it, and what to do when nobody is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from cluster import runs
from cluster.collect import collect
from cluster.overview import Overview
from cluster.runs import write_plan
from cluster.store import Store
from tests.cluster.scenes import ELSEWHERE, GONE, Scene, age
from workflows.command.explain import explain_step, explanation_text
from workflows.command.inspect import run_record, run_view, runs_records
from workflows.command.terminal import out
from workflows.command.top_view import top_view

KEY = "a" * 64


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are written when a test says so."""
    monkeypatch.setattr(runs, "FLUSH_SECONDS", 1e6)


def waits_for_a_node(store: Store) -> None:
    """No event for a minute; its driver beats."""
    scene = Scene(store, owner=ELSEWHERE)
    scene.tell("started", KEY)
    scene.flush()
    age(store, "runs", 60)
    scene.beat()


def held(silent: float) -> Callable[[Store], None]:
    """A driver and a worker elsewhere, both without a sign of life for so many seconds."""

    def written(store: Store) -> None:
        scene = Scene(store, owner=ELSEWHERE)
        scene.hold(KEY)
        scene.flush()
        age(store, "", silent)

    return written


def killed_here(store: Store) -> None:
    scene = Scene(store, owner=GONE)
    scene.hold(KEY)
    scene.flush()
    age(store, "", 3)


def ended(store: Store) -> None:
    Scene(store).end()


GO_ON = "hedgerow resume run-1 --store "


@pytest.mark.parametrize(
    ("write", "state", "driver", "forgets"),
    [
        (waits_for_a_node, "running", "driver on otherhost is at work", False),
        (held(17), "running", "driver on otherhost is at work", False),
        (held(34), "silent", "driver on otherhost has been silent for 34 s; if it is dead, to go on: " + GO_ON, False),
        (
            held(3700),
            "stopped",
            "is taken for dead: nothing was heard of it for over an hour; to go on: " + GO_ON,
            True,
        ),
        (killed_here, "stopped", "is dead: its process is gone; to go on: " + GO_ON, True),
        (ended, "finished", "", True),
    ],
    ids=["waits for a node", "lease late", "silent", "silent for an hour", "killed", "ended"],
)
def test_runs_show_top_and_gc_agree(
    disk: Store, write: Callable[[Store], None], state: str, driver: str, forgets: bool
) -> None:
    write(disk)
    assert runs_records(disk)[0]["state"] == state == run_record(disk, "run-1")["state"]
    for view in (run_view(disk, "run-1"), top_view(Overview(disk, "run-1").look(), disk.url)):
        with out.capture() as shown:
            out.print(view)
        assert driver in " ".join(shown.get().split())
    if forgets:
        collect(disk, ["run-1"], remove=True)
    else:
        with pytest.raises(ValueError, match=r"run-1 is at work: its driver on otherhost wrote \d+ s ago; stop it"):
            collect(disk, ["run-1"], remove=True)
    assert disk.folders("runs") == ([] if forgets else ["run-1"])


@pytest.mark.parametrize(
    ("silent", "state", "words", "in_top"),
    [
        (17, "running", "not stored: running", 1),
        (34, "silent", "whoever computes it has been silent for a while", 1),
        (3700, "stopped", "nobody is at work on it", 0),
    ],
)
def test_show_explain_and_top_agree_on_a_step(disk: Store, silent: float, state: str, words: str, in_top: int) -> None:
    held(silent)(disk)
    assert [step["state"] for step in run_record(disk, "run-1")["steps"]] == [state]
    explanation = explain_step(disk, KEY)
    assert explanation["state"] == state
    assert words in explanation_text(explanation)
    (run,) = Overview(disk, "run-1").look()
    assert len(run.running) == in_top


def test_listing_runs_asks_for_the_beats_only_of_those_that_have_not_ended(
    disk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        scene = Scene(disk, f"run-{number}")
        write_plan(disk, f"run-{number}", [{"key": f"{number:064d}", "at": {}}])
        if number < 4:
            scene.end()
        scene.flush()
    asked: Counter[tuple[str, str]] = Counter()
    for name in ("get", "look", "entries", "folders"):
        true = getattr(Store, name)

        def counted(self: Store, path: str, *about: Any, name: str = name, true: Any = true) -> Any:
            parts = path.split("/")
            asked[name, parts[2] if parts[0] == "runs" and len(parts) > 2 else parts[0]] += 1
            return true(self, path, *about)

        monkeypatch.setattr(Store, name, counted)
    runs_records(disk)
    assert (asked["folders", "runs"], asked["entries", "events"], asked["entries", "beats"]) == (1, 5, 1)
    assert (asked["get", "run.json"], asked["get", "plan.json"], asked["get", "events"]) == (5, 5, 5)
    assert asked["get", "steps"] == 5 * 2  # the manifest, and the lease where that is missing
    assert asked["look", "steps"] == asked["look", "events"] == 0
