"""Machines that are taken away: the notice, and the node that leaves before."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from cluster.leaving import await_notice, main
from tests.cluster.clusters import cluster, free_port


@contextmanager
def _metadata(pages: dict[tuple[str, str], Any], asked: list[dict[str, str]]) -> Iterator[str]:
    """A metadata service: status and text for each method and path, unknown ones are 404."""

    class Service(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            asked.append(dict(self.headers.items()))
            status, text = pages.get((self.command, self.path), (404, ""))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_PUT = _answer  # noqa: N815 - as the server calls them

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _is_told_after(
    cloud: str, pages: dict[tuple[str, str], Any], before: Any, page: tuple[str, str], after: Any
) -> None:
    asked: list[dict[str, str]] = []
    told = threading.Event()
    with _metadata({**pages, page: before}, asked) as service:
        watching = threading.Thread(target=lambda: (await_notice(cloud, service, pause=0.01), told.set()), daemon=True)
        watching.start()
        until = time.monotonic() + 10
        while len(asked) < 6 and time.monotonic() < until:
            time.sleep(0.01)
        assert len(asked) >= 6
        assert not told.is_set()
    with _metadata({**pages, page: after}, asked) as service:
        await_notice(cloud, service, pause=0.01)


def test_aws_gives_notice_by_a_page_that_appears() -> None:
    page = ("GET", "/latest/meta-data/spot/instance-action")
    _is_told_after("aws", {("PUT", "/latest/api/token"): (200, "t")}, (404, ""), page, (200, '{"action": "terminate"}'))


def test_gcp_gives_notice_by_a_page_that_changes() -> None:
    _is_told_after("gcp", {}, (200, "FALSE"), ("GET", "/computeMetadata/v1/instance/preempted"), (200, "TRUE"))


def test_a_service_that_fails_gives_no_notice() -> None:
    page = ("GET", "/computeMetadata/v1/instance/preempted")
    _is_told_after("gcp", {}, (503, "TRUE"), page, (200, "TRUE"))


def test_which_cluster_to_leave_must_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SystemExit, match="2"):
        main(["--within", "5"])


@pytest.mark.faults
def test_nodes_of_this_machine_leave_and_the_head_stays() -> None:
    with cluster(1) as made:
        said = subprocess.run(
            [sys.executable, "-m", "cluster.leaving", "--within", "20", "--address", made.address],
            env=made.environment, check=True, capture_output=True, text=True, timeout=60,
        ).stdout  # fmt: skip
        assert said.startswith("leaving within 20 s: ")
        assert "no node" not in said
        assert not made.nodes[0].members("raylet/raylet")  # an idle node is gone at once; `ray start` itself stays
        assert made.head.process.poll() is None


def test_a_head_that_is_gone_holds_nobody_up(capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    assert main(["--within", "60", "--address", f"127.0.0.1:{free_port()}"]) == 1
    signal.alarm(0)
    assert time.monotonic() - started < 10
    assert "there is no cluster to leave" in capsys.readouterr().out


def test_a_head_that_is_frozen_holds_nobody_up_for_longer_than_there_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        ended = subprocess.run(
            [sys.executable, "-m", "cluster.leaving", "--within", "2", "--address", address], check=False
        )
    assert ended.returncode == -signal.SIGALRM
    assert time.monotonic() - started < 15
