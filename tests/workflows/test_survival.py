"""Whatever is killed, the same command again ends with the same bytes."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from tests.workflows.chains import (
    Family,
    attempts_of,
    command,
    finish_under_fire,
    results_of,
    run_chain,
    running_chain,
    undisturbed_in,
)
from workflows.command.cli import app

FAST_SEEDS, ALL_SEEDS = range(1), range(20)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed; not to be changed."""
    folder = tmp_path_factory.mktemp("calm")
    undisturbed_in(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(calm: Path) -> dict[str, Any]:
    """Its results."""
    return results_of(calm)


@pytest.mark.parametrize("seed", FAST_SEEDS)
def test_killed_and_run_again_equals_undisturbed_byte_for_byte(
    seed: int, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    struck = finish_under_fire(tmp_path, seed)
    assert struck, "no kill struck: the schedule tests nothing"
    assert results_of(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [seed for seed in ALL_SEEDS if seed not in FAST_SEEDS])
def test_no_kill_schedule_of_twenty_loses_anything(seed: int, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    assert finish_under_fire(tmp_path, seed)
    assert results_of(tmp_path) == undisturbed


def test_two_drivers_at_once_compute_every_step_once(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    with running_chain(tmp_path) as first, running_chain(tmp_path) as second:
        outputs = [process.communicate(timeout=250)[0] for process in (first, second)]
        assert [first.returncode, second.returncode] == [0, 0], outputs
    assert results_of(tmp_path) == undisturbed
    assert set(attempts_of(tmp_path).values()) == {1}


def stopped(folder: Path, number: signal.Signals) -> tuple[int, str]:
    """Starts the chain and stops it as soon as a step runs; its exit code and what it said."""
    with running_chain(folder) as process:
        family = Family(process.pid)
        while process.poll() is None and not family.workers():
            time.sleep(0.05)
        process.send_signal(number)
        output = process.communicate(timeout=60)[0]
    return process.returncode, output


def test_what_is_stopped_says_how_to_go_on_and_the_same_command_or_the_one_it_printed_does(
    undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    code, output = stopped(tmp_path, signal.SIGTERM)
    assert code == 75, output
    assert "to go on: hedgerow resume chain-" in output
    assert "Traceback" not in output

    code, output = stopped(tmp_path, signal.SIGINT)  # the same command again
    assert code == 130, output
    resume = next(line for line in output.splitlines() if line.startswith("to go on: "))
    assert resume.startswith("to go on: hedgerow resume chain-")
    again = [*command(tmp_path)[:3], *shlex.split(resume)[4:]]
    completed = subprocess.run(again, capture_output=True, text=True, timeout=250, cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert results_of(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_stop_while_ray_starts_is_one_line_and_leaves_no_process(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    with running_chain(tmp_path) as process:
        family = Family(process.pid)
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.endswith("15 to run\n"), first
        until = time.monotonic() + 20
        while not any("gcs_server" in _name(member) for member in family.members) and time.monotonic() < until:
            time.sleep(0.02)
            family.look()
        os.killpg(process.pid, number)  # as a terminal or a batch system does
        family.look()
        output = process.communicate(timeout=60)[0]
        gone, left = psutil.wait_procs(family.members, timeout=10)
    assert (process.returncode, left) == (code, []), (output, gone)
    (line,) = output.splitlines()
    assert line.startswith("to go on: hedgerow run "), output


def _name(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return process.name()
    return ""


def test_a_deeper_run_recomputes_nothing_of_the_shared_prefix_and_mends_what_is_damaged(
    calm: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(calm, tmp_path, dirs_exist_ok=True)
    words = ["plan", str(tmp_path / "chain.yaml"), "--store", str(tmp_path / "store"), "--set", "levels=3", "--json"]
    plan = json.loads(CliRunner().invoke(app, words).stdout)
    assert plan["stored"] == len(undisturbed)
    assert plan["to_run"] > 0

    victim = _flip_a_byte_in_the_last_trained_weights(tmp_path)
    deeper = run_chain(tmp_path, "--set", "levels=3")
    assert deeper.returncode == 0, deeper.stderr
    assert victim[:12] in deeper.stdout
    assert "damaged" in deeper.stdout
    results = results_of(tmp_path)
    assert {key: results[key] for key in undisturbed} == undisturbed
    attempts = attempts_of(tmp_path)
    assert {key: attempts[key] for key in undisturbed} == {key: 2 if key == victim else 1 for key in undisturbed}
    assert list((tmp_path / "store" / "set-aside" / victim).rglob("weights.safetensors"))


def _flip_a_byte_in_the_last_trained_weights(folder: Path) -> str:
    """Damages what the deeper run must read: the densest damage that a plan cannot see."""
    from cluster.runs import all_runs, finished_steps
    from cluster.store import Store

    store = Store.open(str(folder / "store"))
    steps = finished_steps(store, all_runs(store)[0].id)
    last = [step for step in steps if step.kind == "train" and step.at == {"replicate": 0, "level": 2}][-1]
    path = folder / "store" / last.step.manifest["files"]["weights.safetensors"]["path"]
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    return last.step.key
