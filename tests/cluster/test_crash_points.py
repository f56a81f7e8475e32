"""The driver is killed at every call of the store in turn, before it and after it; every restart ends equal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.crashing import STEPS, SUM

ROOT = Path(__file__).parents[2]


def points(folder: Path, mode: str) -> list[dict[str, Any]]:
    """Every crash point; the last is a run that was not killed."""
    command = [sys.executable, "-m", "tests.cluster.crashing", str(folder), mode]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout[-500:] + answer.stderr[-3000:]
    return [json.loads(line) for line in answer.stdout.splitlines()]


def same(told: dict[str, Any]) -> dict[str, Any]:
    return {name: told[name] for name in ("sum", "results", "files", "aside", "restarted", "kept")}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("mode", "calls"), [("all", 50), ("driver", 12)])
def test_a_driver_killed_at_any_call_of_the_store_is_restarted_to_the_same_results(
    tmp_path: Path, mode: str, calls: int
) -> None:
    *crashed, whole = points(tmp_path, mode)
    assert len(crashed) >= 2 * calls
    assert all(told["killed"] for told in crashed)
    assert whole["sum"] == SUM
    assert len(whole["results"]) == STEPS
    assert whole["begun"] == STEPS - 1  # a driver that starts after the end computes nothing
    assert whole["recounted"] == 0
    for told in crashed:
        assert same(told) == same(whole), told
        assert told["ends"] >= 1
    again = sorted(told["begun"] - (STEPS - 1) for told in crashed)
    turns = sorted(told["recounted"] for told in crashed)
    assert again[0] >= 0
    assert again[-1] <= (2 if mode == "all" else 0), again
    if mode == "driver":
        assert turns[-1] == 0  # its workers went on: nothing is computed twice
    print(  # noqa: T201
        f"{mode}: {len(crashed)} crash points, {sum(again)} steps begun again, at most {again[-1]} a crash; "
        f"{sum(turns)} of 3 turns counted again, at most {turns[-1]}"
    )
