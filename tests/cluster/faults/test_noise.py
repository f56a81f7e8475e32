"""What goes wrong all the time or in one place: lost messages, a failing store, wrong clocks, full disks, leaks."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from tests.cluster.clusters import cluster
from tests.cluster.conftest import BUCKET
from tests.cluster.faults.climbs import Work
from tests.cluster.faults.trials import REPETITIONS, calm, trial, undisturbed

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
WORK = Work(width=4, end=60)


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_lost_messages_between_rays_processes_change_nothing(tmp_path: Path, repetition: int) -> None:
    """2 % of all requests and 2 % of all answers are lost: Ray runs some attempts twice, and hedgerow none."""
    losses = json.dumps({"*": {"num_failures": -1, "req_failure_prob": 2, "resp_failure_prob": 2}})
    with cluster(2, 2) as made:
        calm(made, tmp_path, WORK)
    with (
        cluster(2, 2, RAY_testing_rpc_failure=losses) as made,
        trial("2 % of messages lost", tmp_path / "run", WORK) as run,
    ):
        run.start(made)
        run.strike()
        run.finish()
        run.figures(run.standstill())


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_a_store_that_fails_one_request_in_twenty_changes_nothing(
    s3_server: str, tmp_path: Path, repetition: int
) -> None:
    """Half of the failures come before the store has done what was asked, half after."""
    with failing(s3_server, 0.05, repetition) as endpoint:
        reached = {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true"}
        urls = [f"s3://{BUCKET}/{os.urandom(6).hex()}" for _ in range(2)]
        with cluster(2, 2) as made:
            calm(made, tmp_path, WORK, "s3", url=urls[0])
        with (
            cluster(2, 2, **reached) as made,
            trial("5 % of the store's answers are 503", tmp_path / "run", WORK, url=urls[1], shape="s3") as run,
        ):
            run.start(made)
            run.strike()
            run.finish()
            run.figures(run.standstill())


@contextmanager
def failing(endpoint: str, share: float, seed: int) -> Iterator[str]:
    """A proxy before a server, which answers with 503 now and then, before or after the server has heard."""
    random, lock = Random(seed), threading.Lock()
    target = urlsplit(endpoint).netloc

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words: Any) -> None:
            pass

        def forward(self) -> None:
            with lock:
                strikes, late = random.random() < share, random.random() < 0.5
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, data = 503, [], b""
            if not strikes or late:
                there = HTTPConnection(target, timeout=30)
                there.request(self.command, self.path, body, dict(self.headers.items()))
                answer = there.getresponse()
                data = answer.read()
                if not strikes:
                    status, headers = answer.status, answer.getheaders()
                there.close()
            data = b"" if strikes else data
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            length = {name.lower(): value for name, value in headers}.get("content-length", len(data))
            self.send_header("Content-Length", str(length if self.command == "HEAD" else len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward  # noqa: N815 - named by the library

        def handle(self) -> None:
            try:
                super().handle()
            except (HTTPException, ConnectionError):
                return

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("repetition", range(REPETITIONS))
@pytest.mark.parametrize("hours", [-1, 1])
def test_an_hour_of_clock_skew_neither_takes_nor_keeps_a_lease(tmp_path: Path, hours: int, repetition: int) -> None:
    """One node's clock is wrong, also when a killed worker's step moves between it and a right one."""
    skewed = tmp_path / "skewed"
    skewed.mkdir()
    (skewed / "sitecustomize.py").write_text(
        f"import sys, time\nif any('default_worker' in word for word in sys.orig_argv):\n"
        f"    true = time.time\n    time.time = lambda: true() + {3600 * hours}\n"
    )
    with cluster(2) as made:
        made.add(2, PYTHONPATH=f"{skewed}:{made.environment['PYTHONPATH']}")
        calm(made, tmp_path, WORK)
        with trial(f"clock of one node {hours:+d} h", tmp_path / "run", WORK) as run:
            run.start(made)
            run.until_at(25 + repetition)
            clocks = {line["node"]: line["clock"] for line in run.at().values()}
            run.strike()
            run.affected = set()
            for number, line in run.at().items():
                if number % 2 == 0:
                    run.affected.add(number)
                    psutil.Process(line["pid"]).kill()
            run.finish()
            figures = run.figures()
    assert abs(max(clocks.values()) - min(clocks.values())) > 3000, "the clock was not wrong"
    assert figures.recovery is not None
    assert figures.recovery < 20
    assert len([outcome for outcome in run.outcomes() if outcome["state"] == "fenced"]) == 0


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A disk of a few megabytes."""
    folder.mkdir(parents=True)
    size = ["-o", f"size={megabytes}m"]
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", *size, "none", str(folder)]).returncode:
        pytest.skip("no disk may be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_a_full_disk_on_one_node_stops_nothing(tmp_path: Path, repetition: int) -> None:
    """Temporary files and the cache of the node lie on it; its steps do without."""
    with small_disk(tmp_path / "small", 4) as disk, cluster(2) as made:
        made.add(2, TMPDIR=str(disk), HEDGEROW_CACHE=str(disk / "cache"))
        calm(made, tmp_path, WORK)
        with trial("disk of one node full", tmp_path / "run", WORK) as run:
            run.start(made)
            run.until_at(20 + repetition)
            run.strike()
            fill(disk)
            run.finish()
            figures = run.figures(run.standstill())
    assert figures.lost == 0


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_a_full_store_ends_with_its_cause_and_the_next_driver_goes_on(tmp_path: Path, repetition: int) -> None:
    with small_disk(tmp_path / "small", 4) as disk, cluster(2, 2) as made:
        calm(made, tmp_path, WORK)
        with trial("disk of the store full, then not", tmp_path / "run", WORK, url=str(disk / "store")) as run:
            driver = run.start(made)
            run.until_at(20 + repetition)
            run.strike()
            filling = fill(disk)
            driver.process.wait(150)
            assert driver.process.returncode in (1, 3), driver.said()
            assert "No space left" in driver.said(), driver.said()
            filling.unlink()
            run.repaired()
            run.start(made)
            run.finish()
            run.figures(run.resumed())


def fill(disk: Path) -> Path:
    """Writes until nothing more goes on it."""
    filling = disk / "filling"
    with filling.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            return filling


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_a_memory_hog_ends_after_its_budget_and_its_neighbours_live(tmp_path: Path, repetition: int) -> None:
    """Ray's monitor ends the attempt; how much memory a node may use is set to little more than is used now."""
    memory = psutil.virtual_memory()
    share = 1 - (memory.available - 3 * 2**30) / memory.total
    work = Work(width=3, end=60, hog=8000)
    limits = {"RAY_memory_usage_threshold": f"{share:.3f}", "RAY_memory_monitor_refresh_ms": "100"}
    with cluster(4, **limits) as made, trial("memory hog", tmp_path / "run", work) as run:
        run.start(made)
        run.until(lambda: len(run.at()) == 3)
        run.finish(code=1)
        causes = [event["cause"] for event in run.drivers[-1].states("failed")]
        hogs = [line for line in run.lines() if line["step"] == 2]
        _, second = (place for place, line in enumerate(hogs) if line["what"] == "begin")  # once, and once more
        neighbours = undisturbed(Work(work.width - 1, work.end)).items()
        run.check_publications({key: result for key, result in neighbours if "links" in result["metrics"]})
        run.measured(round(hogs[second]["t"] - hogs[second - 1]["t"], 2))
    assert causes == ["oom"]
