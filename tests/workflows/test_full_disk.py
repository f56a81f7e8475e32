"""Disks that fill up while a run goes on: one clear cause, and the same bytes once there is room."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflows.chains import results_of
from tests.workflows.conftest import write_recipe

ROOT = Path(__file__).parents[2]


def in_own_mounts(folder: Path, script: str) -> list[str]:
    """The lines that shell lines print, run where they may mount; skips where that is not allowed."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    small = folder / "small"
    small.mkdir()
    mount = f"mount -t tmpfs -o size=4m tmpfs '{small}'"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    write_recipe(folder)
    hedgerow = f'hedgerow() {{ {sys.executable} -m workflows.command.cli "$@" 2>&1; }}'
    said = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{mount}\n{hedgerow}\n{script}"],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        check=False,
    )
    assert said.stderr == "", said.stderr
    return said.stdout.splitlines()


def test_a_full_store_ends_the_run_with_its_cause_and_the_same_bytes_are_there_once_it_has_room(
    tmp_path: Path, small_run: Path
) -> None:
    lines = in_own_mounts(
        tmp_path,
        """
        run="run small.yaml --store small/store --out out --wandb disabled"
        hedgerow $run; echo "code $?"
        dd if=/dev/zero of=small/ballast 2> /dev/null
        hedgerow gc --yes --store small/store; echo "code $?"
        rm small/ballast
        mount -o remount,size=64m small
        hedgerow $run; echo "code $?"
        cp -r small/store store
        """,
    )
    codes = [index for index, line in enumerate(lines) if line.startswith("code ")]
    assert [lines[index] for index in codes] == ["code 3", "code 0", "code 0"], lines
    causes = [line for line in lines if " failed (store): " in line]
    assert causes
    assert all("No space left on device" in cause for cause in causes)
    assert len({cause.split(" failed ")[0] for cause in causes}) == len(causes)  # each failed step is told once
    assert lines[codes[0] - 1].startswith("to go on: hedgerow resume small-")
    assert not any("Traceback" in line for line in lines)
    assert results_of(tmp_path) == _results(small_run, tmp_path)


def _results(store: Path, tmp_path: Path) -> object:
    (tmp_path / "undisturbed").mkdir()
    shutil.copytree(store, tmp_path / "undisturbed" / "store")
    return results_of(tmp_path / "undisturbed")


def test_no_room_for_the_report_costs_no_result_and_no_earlier_report(tmp_path: Path, small_run: Path) -> None:
    shutil.copytree(small_run, tmp_path / "store")
    lines = in_own_mounts(
        tmp_path,
        """
        report=small/$(ls store/runs)/table.md
        mkdir $(dirname $report)
        echo earlier > $report
        dd if=/dev/zero of=small/ballast 2> /dev/null
        hedgerow run small.yaml --store store --out small --wandb disabled > again; echo "code $?"
        cat $report
        ls $(dirname $report)
        """,
    )
    assert lines == ["code 3", "earlier", "table.md"]
    said = (tmp_path / "again").read_text()
    (line,) = (line for line in said.splitlines() if line.startswith("no report was written: --out small/small-"))
    assert line.endswith(": No space left on device; the results are in the store")
    assert "Iterative magnitude pruning" in said
    assert "Traceback" not in said
