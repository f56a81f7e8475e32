"""Runs batch scripts as Slurm would, on this machine: `srun`, `scontrol` and, where asked for, `ray` are stand-ins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.clusters import free_port

JOB = "4711"
SRUN = """#!/bin/bash
echo "srun $*" >> "$CALLS"
while [[ "$1" == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$CALLS"
"""
RAY = """#!/bin/bash
echo "ray $* token=$(cat "$RAY_AUTH_TOKEN_PATH" | wc -c) mode=$RAY_AUTH_MODE oom=$RAY_task_oom_retries" >> "$CALLS"
case "$1" in
    health-check) [ -e "$ALIVE" ];;
    start) touch "$ALIVE"; trap 'rm -f "$ALIVE"; exit 0' TERM; while :; do sleep 0.1; done;;
esac
"""


@dataclass
class Job:
    """A job on one or more nodes that are all this machine."""

    folder: Path
    script: str
    programs: dict[str, str]
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        bin_ = self.folder / "bin"
        bin_.mkdir(exist_ok=True)
        for name, text in {"srun": SRUN, "scontrol": SCONTROL, **self.programs}.items():
            (bin_ / name).write_text(text)
            (bin_ / name).chmod(0o755)
        path = self.folder / "job.sbatch"
        path.write_text(self.script)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM_", "HEDGEROW_"))}
        kept["PATH"] = f"{bin_}:{Path(sys.executable).parent}:{kept['PATH']}"
        self.process = subprocess.Popen(
            ["bash", str(path)], cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
            env={
                **kept, "CALLS": str(self.folder / "calls"), "ALIVE": str(self.folder / "alive"),
                "SLURM_JOB_ID": JOB, "SLURM_CPUS_ON_NODE": "1", "SLURMD_NODENAME": "localhost",
                "HEDGEROW_PORT": str(free_port()), "OMP_NUM_THREADS": "1", **self.environment,
            },
        )  # fmt: skip

    def start_and_wait(self) -> None:
        """Until a program says that it has started, by a file beside its calls."""
        self.start()
        self.wait_for(self.folder / "calls.started")

    def signal(self, number: signal.Signals) -> None:
        """To the script alone, as `--signal=B:` and `scancel --batch` do."""
        assert self.process
        self.process.send_signal(number)

    def wait_for(self, path: Path, seconds: float = 60.0) -> None:
        until = time.monotonic() + seconds
        while not path.exists():
            assert self.process
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < until, f"no {path.name}"
            time.sleep(0.02)

    def finish(self, seconds: float = 120.0) -> tuple[int, str]:
        """Exit code and output."""
        assert self.process
        said = self.process.communicate(timeout=seconds)[0]
        return self.process.returncode, said

    def run(self) -> tuple[int, str]:
        self.start()
        return self.finish()

    def end(self) -> None:
        """Ends what is left of it."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()

    @property
    def job_folder(self) -> Path:
        return self.folder / ".hedgerow-jobs" / JOB

    def calls(self, word: str = "") -> list[str]:
        path = self.folder / "calls"
        return [line for line in path.read_text().splitlines() if line.startswith(word)] if path.exists() else []
