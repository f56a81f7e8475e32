"""Ray clusters as real processes on this machine: a head and raylets; each can be killed, frozen or drained."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from cluster.settings import RAY_ENVIRONMENT

RAY = str(Path(sys.executable).with_name("ray"))
STARTING = 120.0
NODE = "HEDGEROW_TEST_NODE"
"""The environment variable that names a node to what runs on it."""


class Node:
    """One raylet, its agents and its workers; of a head the GCS too."""

    def __init__(self, process: subprocess.Popen[bytes], name: str) -> None:
        self.process = process
        self.name = name

    def members(self, name: str = "") -> list[psutil.Process]:
        """Its processes whose command line holds these words."""
        with contextlib.suppress(psutil.NoSuchProcess):
            found = psutil.Process(self.process.pid).children(recursive=True)
            return [member for member in found if name in _title(member)]
        return []

    def signal(self, number: signal.Signals, name: str = "") -> None:
        """Sends a signal to its processes whose command line holds these words."""
        for member in self.members(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(number)

    def kill(self) -> None:
        """Ends all of it at once, as a machine that loses power."""
        members = self.members()
        for member in [psutil.Process(self.process.pid), *members] if self.process.poll() is None else members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        self.process.wait()


class Cluster:
    """A head without CPUs of its own, and the nodes that were added; the settings are those that manifests ship."""

    def __init__(
        self, token: str | None = None, dashboard: bool = False, host: str = "127.0.0.1", **environment: str
    ) -> None:
        self.token = token or secrets.token_hex(16)
        self.folder = Path(tempfile.mkdtemp(prefix="hedge-", dir="/tmp"))  # sockets below it must have short paths
        self.environment = {
            **os.environ,
            **RAY_ENVIRONMENT,
            "RAY_raylet_start_wait_time_s": str(int(STARTING)),  # a busy machine is no reason to give up
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **environment,
        }
        self.dashboard_port = free_port()
        self.port = free_port()
        self.nodes: list[Node] = []
        self.host = host
        self._count = 0
        self._dashboard = dashboard
        self.head = self.start_head()

    @property
    def address(self) -> str:
        """Where the head's GCS listens."""
        return f"{self.host}:{self.port}"

    def start_head(self, *extra: str, **environment: str) -> Node:
        """Starts the head, or another at the same address when the last is dead."""
        with contextlib.suppress(FileNotFoundError):  # what a killed head left there keeps another from its address
            (self.folder / "ray" / "ray_current_cluster").unlink()
        dashboard = ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(self.dashboard_port)]
        self.head = self._start(
            "head", "--head", "--port", str(self.port), "--num-cpus", "0", *extra,
            *(dashboard if self._dashboard else ["--include-dashboard", "false"]), environment=environment,
        )  # fmt: skip
        return self.head

    def add(
        self,
        cpus: int = 1,
        labels: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        at: str = "",
        options: Sequence[str] = (),
        **environment: str,
    ) -> Node:
        """Adds a node.

        Args:
            cpus: that it says it has.
            labels: that it bears.
            prefix: words before its command line, such as those that enter a namespace.
            at: its address, if not the cluster's.
            options: more of `ray start`, such as `--num-gpus 1`.
            environment: of its processes, beside the cluster's.
        """
        marks = ["--labels", ",".join(f"{name}={value}" for name, value in labels.items())] if labels else []
        name = f"node-{self._count}"
        node = self._start(
            name, "--address", self.address, "--num-cpus", str(cpus), *marks, *options,
            environment={NODE: name, **environment}, prefix=prefix, at=at,
        )  # fmt: skip
        self.nodes.append(node)
        return node

    def close(self) -> None:
        """Ends everything, and removes what it wrote."""
        for node in [*self.nodes, self.head]:
            node.signal(signal.SIGCONT)
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def named(self, name: str) -> Node:
        """The node of this name."""
        return next(node for node in self.nodes if node.name == name)

    def _start(
        self, name: str, *options: str, environment: Mapping[str, str], prefix: Sequence[str] = (), at: str = ""
    ) -> Node:
        self._count += 1
        log = self.folder / f"{self._count}-{name}.log"
        process = subprocess.Popen(
            [*prefix, RAY, "start", "--block", "--disable-usage-stats",
             "--dashboard-agent-listen-port", "0",  # or two clusters on a machine would want the same
             "--temp-dir", str(self.folder / "ray"), "--object-store-memory", str(80 * 2**20),
             "--node-ip-address", at or self.host, *options],
            stdout=log.open("wb"), stderr=subprocess.STDOUT, start_new_session=True,
            env={**self.environment, **environment},
        )  # fmt: skip
        until = time.monotonic() + STARTING
        while "Ray runtime started" not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"ray start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        return Node(process, name)


@contextlib.contextmanager
def cluster(*cpus: int, dashboard: bool = False, host: str = "127.0.0.1", **environment: str) -> Iterator[Cluster]:
    """A cluster with a node for each number of CPUs, gone after the `with` block."""
    made = Cluster(dashboard=dashboard, host=host, **environment)
    try:
        for count in cpus:
            made.add(count)
        yield made
    finally:
        made.close()


def drain(made: Cluster, node_id: str, seconds: float) -> None:
    """Announces that a node will be gone, as a cloud does before it takes a spot machine back."""
    subprocess.run(
        [RAY, "drain-node", "--address", made.address, "--node-id", node_id, "--reason",
         "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds", str(int(seconds))],
        check=True, env=made.environment, capture_output=True,
    )  # fmt: skip


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def main() -> int:
    """By hand: `python -m tests.cluster.clusters 1 1` prints the environment of a cluster of two nodes, and waits."""
    with cluster(*map(int, sys.argv[1:] or ["1"])) as made:
        sys.stdout.write(json.dumps({"address": made.address, "token": made.token}) + "\n")
        sys.stdout.flush()
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
