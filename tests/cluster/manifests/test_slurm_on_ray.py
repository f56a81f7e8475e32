"""The batch script around a real Ray and a real hedgerow."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGUSR1

import pytest

from cluster.manifests import Slurm
from tests.cluster.manifests.sbatch import Job
from tests.workflows.conftest import SMALL, write_recipe

pytestmark = pytest.mark.faults

ASKS = """#!/usr/bin/env python
import os, sys
from cluster.session import session

with session(sys.argv[sys.argv.index("--address") + 1]) as ray:
    seen = ray.get(ray.remote(lambda: os.environ["RAY_task_oom_retries"]).remote())
    sys.exit(0 if (len(ray.nodes()), seen, os.environ.get("RAY_AUTH_TOKEN")) == ({nodes}, "1", None) else 1)
"""
OPTIONS = f"--temp-dir={{folder}} --object-store-memory={80 * 2**20}"


@pytest.fixture
def short_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Sockets below it must have short paths."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="hedge-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _job(tmp_path: Path, ray_folder: Path, nodes: int, programs: dict[str, str], *command: str) -> Job:
    script = Slurm(nodes=nodes, command=command or ("run", "quickstart"), store=str(tmp_path / "store"))
    environment = {
        "HEDGEROW_RAY_OPTIONS": OPTIONS.format(folder=ray_folder),
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "HEDGEROW_CACHE": str(tmp_path / "cache"),
        "WANDB_MODE": "disabled",
    }
    return Job(tmp_path, script.files()["hedgerow.sbatch"], programs, environment)


def test_the_driver_is_let_in_by_the_token_file(tmp_path: Path, short_folder: Path) -> None:
    job = _job(tmp_path, short_folder, 1, {"hedgerow": ASKS.format(nodes=1)})
    try:
        code, said = job.run()
        assert (code, (job.job_folder / "done").exists()) == (0, True), said
    finally:
        job.end()


def test_the_driver_waits_for_all_nodes(tmp_path: Path, short_folder: Path) -> None:
    job = _job(tmp_path, short_folder, 2, {"hedgerow": ASKS.format(nodes=2)})
    try:
        code, said = job.run()
        assert (code, (job.job_folder / "done").exists()) == (0, True), said
    finally:
        job.end()


def test_a_job_goes_on_after_its_time_was_up(tmp_path: Path, short_folder: Path) -> None:
    recipe = write_recipe(tmp_path, {**SMALL, "train": {**SMALL["train"], "epochs": 400}})
    job = _job(tmp_path, short_folder, 1, {}, "run", str(recipe), "--checkpoint", "0.2")
    try:
        job.start()
        job.wait_for(tmp_path / "store" / "runs", 90)
        time.sleep(5)
        job.signal(SIGUSR1)
        code, said = job.finish()
        assert (code, job.calls("scontrol")) == (75, ["scontrol requeue 4711"]), said
        assert not (job.job_folder / "done").exists()
        code, said = job.run()
        assert (code, (job.job_folder / "done").exists()) == (0, True), said
    finally:
        job.end()
    assert json.loads((job.job_folder / "exit-code").read_text()) == 0
