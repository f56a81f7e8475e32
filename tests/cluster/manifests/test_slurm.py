"""The batch script, with stand-ins for Slurm's commands."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGTERM, SIGUSR1
from typing import Any

import pytest

from cluster.manifests import Slurm
from cluster.settings import RAY_ENVIRONMENT
from tests.cluster.manifests.sbatch import JOB, RAY, Job

HEDGEROW = """#!/bin/bash
echo "hedgerow $* store=$HEDGEROW_STORE" >> "$CALLS"
{then}
"""
WAITS = """trap 'sleep 0.2; exit 75' TERM
touch "$CALLS.started"
while :; do sleep 0.05; done"""

Start = Callable[..., Job]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Start]:
    made: list[Job] = []

    def make(then: str = "exit 0", ray: str = RAY, **fields: Any) -> Job:
        script = Slurm(**{"nodes": 1, **fields}).files()["hedgerow.sbatch"]
        made.append(Job(tmp_path, script, {"ray": ray, "hedgerow": HEDGEROW.format(then=then)}))
        return made[-1]

    yield make
    for each in made:
        each.end()


@pytest.mark.parametrize(
    "fields", [{}, {"nodes": 1}, {"nodes": 9, "gpus": 4, "type": "h100", "setup": ("module load x",)}]
)
def test_the_script_is_good_bash_and_its_options_come_first(fields: dict[str, Any]) -> None:
    script = Slurm(**fields).files()["hedgerow.sbatch"]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    lines = script.splitlines()
    options = [number for number, line in enumerate(lines) if line.startswith("#SBATCH --")]
    assert options == list(range(1, len(options) + 1))  # Slurm reads none after the first command
    assert {"#SBATCH --exclusive", "#SBATCH --requeue", "#SBATCH --signal=B:USR1@120"} <= set(lines)


def test_every_process_gets_the_tuned_environment(job: Start) -> None:
    made = job(store="s3://bucket/store")
    for name, value in {**RAY_ENVIRONMENT, "RAY_AUTH_MODE": "token"}.items():
        assert f"{name}={value}" in made.script
    assert made.run()[0] == 0
    assert made.calls("ray start")
    assert all("token=64 mode=token oom=1" in call for call in made.calls("ray"))
    assert made.calls("hedgerow")[0].endswith("store=s3://bucket/store")


def test_success_is_hedgerows_own(job: Start) -> None:
    made = job()
    assert made.run()[0] == 0
    assert (made.job_folder / "done").exists()
    assert (made.job_folder / "exit-code").read_text() == "0\n"
    assert not (made.job_folder / "token").exists()
    assert not made.calls("scontrol")


def test_what_a_site_has_to_be_sourced_may_read_variables_that_nobody_has_set(job: Start) -> None:
    assert job(setup=('[ -z "$SET_BY_NOBODY" ] || module load x',)).run()[0] == 0


@pytest.mark.parametrize("code", [1, 2, 3, 75, 130])
def test_hedgerows_failure_is_the_scripts(job: Start, code: int) -> None:
    made = job(then=f"exit {code}")
    assert made.run()[0] == code
    assert not (made.job_folder / "done").exists()
    assert (made.job_folder / "exit-code").read_text() == f"{code}\n"
    assert not made.calls("scontrol")  # nobody said that the time was up


def test_a_head_that_fails_with_zero_is_found_out(job: Start) -> None:
    made = job(ray='#!/bin/bash\n[ "$1" = start ] && exit 0\nexit 1\n')
    code, said = made.run()
    assert code == 3
    assert "head did not start" in said
    assert not (made.job_folder / "done").exists()
    assert not made.calls("hedgerow")


def test_workers_that_fail_with_zero_are_found_out(job: Start) -> None:
    made = job(ray=RAY.replace("start)", 'start) [ "$2" = --head ] || exit 0;'), nodes=3)
    code, said = made.run()
    assert code == 3
    assert "of 3 nodes" in said
    assert made.calls("srun --nodes=2 --ntasks=2")
    assert not made.calls("hedgerow")


def test_notice_saves_and_queues_up_again(job: Start, tmp_path: Path) -> None:
    made = job(then=WAITS)
    made.start_and_wait()
    token = made.job_folder / "token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert made.job_folder.stat().st_mode & 0o777 == 0o700
    assert token.read_text() not in (tmp_path / "calls").read_text()
    made.signal(SIGUSR1)
    assert made.finish()[0] == 75
    assert made.calls("scontrol") == [f"scontrol requeue {JOB}"]
    assert not (made.job_folder / "done").exists()


def test_a_cancelled_job_stays_cancelled(job: Start) -> None:
    made = job(then=WAITS)
    made.start_and_wait()
    made.signal(SIGTERM)
    assert made.finish()[0] == 75
    assert not made.calls("scontrol")


def test_notice_before_ray_is_up_queues_up_again(job: Start) -> None:
    made = job(ray='#!/bin/bash\ntouch "$CALLS.started"\n[ "$1" = start ] && sleep 60\nexit 1\n')
    made.start_and_wait()
    made.signal(SIGUSR1)
    assert made.finish()[0] == 75
    assert made.calls("scontrol") == [f"scontrol requeue {JOB}"]
    assert not made.calls("hedgerow")


def test_notice_to_a_run_that_is_done_anyway_changes_nothing(job: Start) -> None:
    made = job(then=WAITS.replace("exit 75", "exit 0"))
    made.start_and_wait()
    made.signal(SIGUSR1)
    assert made.finish()[0] == 0
    assert (made.job_folder / "done").exists()
    assert not made.calls("scontrol")


def test_a_driver_that_dies_of_the_notice_is_run_again(job: Start) -> None:
    made = job(then=WAITS.replace("trap 'sleep 0.2; exit 75' TERM", ""))
    made.start_and_wait()
    made.signal(SIGUSR1)
    assert made.finish()[0] == 75
    assert made.calls("scontrol") == [f"scontrol requeue {JOB}"]


@pytest.mark.parametrize("time", ["12", "12:00", "0:12:00", "0-0:12", "0-0:12:00"])
def test_a_time_that_is_over_before_work_begins_is_refused(time: str) -> None:
    with pytest.raises(ValueError, match=f"time: {time} is hardly more than the notice, 120 s.*: more than 720 s"):
        Slurm(time=time)


@pytest.mark.parametrize("time", ["13", "12:01", "1:00:00", "0-1", "1-0:00", "0"])  # 0 is no limit
def test_a_time_that_leaves_room_for_work_is_taken(time: str) -> None:
    assert f"#SBATCH --time={time}\n" in Slurm(time=time).files()["hedgerow.sbatch"]


def test_words_of_the_command_arrive_as_they_were_given(job: Start) -> None:
    made = job(command=("run", "imp", "--set", "a={b: [1, 'c d']}", "--set", "x=$HOME`id`"))
    assert made.run()[0] == 0
    assert made.calls("hedgerow")[0].startswith(
        "hedgerow run imp --set a={b: [1, 'c d']} --set x=$HOME`id` --address 127."
    )
