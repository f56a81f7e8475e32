"""Machines that are taken away: the notice, and the node that leaves before."""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from cluster.leaving import CLOUDS, await_notice, main, notified_by_aws, notified_by_gcp
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
    notified: Callable[[str], bool],
    pages: dict[tuple[str, str], Any],
    before: Any,
    page: tuple[str, str],
    after: Any,
) -> None:
    asked: list[dict[str, str]] = []
    told = threading.Event()
    with _metadata({**pages, page: before}, asked) as service:
        ask = partial(notified, service)
        watching = threading.Thread(target=lambda: (await_notice(ask, pause=0.01), told.set()), daemon=True)
        watching.start()
        until = time.monotonic() + 10
        while len(asked) < 6 and time.monotonic() < until:
            time.sleep(0.01)
        assert len(asked) >= 6
        assert not told.is_set()
    with _metadata({**pages, page: after}, asked) as service:
        await_notice(partial(notified, service), pause=0.01)


def test_aws_gives_notice_by_a_page_that_appears() -> None:
    page = ("GET", "/latest/meta-data/spot/instance-action")
    _is_told_after(
        notified_by_aws, {("PUT", "/latest/api/token"): (200, "t")}, (404, ""), page, (200, '{"action": "terminate"}')
    )


def test_gcp_gives_notice_by_a_page_that_changes() -> None:
    _is_told_after(
        notified_by_gcp, {}, (200, "FALSE"), ("GET", "/computeMetadata/v1/instance/preempted"), (200, "TRUE")
    )


def test_each_cloud_is_asked_at_its_own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("cluster.leaving._ask", lambda url, method, headers: asked.append(url) or "")
    assert not any(notified() for notified in CLOUDS.values())
    assert [url.split("/")[2] for url in asked] == ["169.254.169.254", "169.254.169.254", "metadata.google.internal"]
    assert list(CLOUDS) == ["aws", "gcp"]


def test_a_service_that_fails_gives_no_notice() -> None:
    page = ("GET", "/computeMetadata/v1/instance/preempted")
    _is_told_after(notified_by_gcp, {}, (503, "TRUE"), page, (200, "TRUE"))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nTR",  # IncompleteRead
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xfe",  # bytes that are no text
        b"nonsense\r\n\r\n",  # BadStatusLine
        b"",  # cut off
    ],
)
def test_a_broken_answer_does_not_end_the_watch(answer: bytes) -> None:
    page = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nTRUE"
    with socket.create_server(("127.0.0.1", 0)) as service:

        def serve() -> None:
            for each in (answer, answer, page):
                asking, _ = service.accept()
                with asking:
                    asking.recv(4096)
                    asking.sendall(each)

        serving = threading.Thread(target=serve, daemon=True)
        serving.start()
        await_notice(partial(notified_by_gcp, f"http://127.0.0.1:{service.getsockname()[1]}"), pause=0.01)
        serving.join(5)
        assert not serving.is_alive()


class _Head:
    """Stands in for `leave`: fails as it is told to, then succeeds."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.asked: list[tuple[int, bool]] = []

    def leave(self, address: str, seconds: int, wait: bool) -> list[str]:
        self.asked.append((seconds, wait))
        if self.failures:
            raise self.failures.pop(0)
        return ["node"]


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Head]:
    from ray.exceptions import RpcError

    made = _Head(OSError("no route"), RpcError("UNAVAILABLE"), RuntimeError("what nobody thought of"))
    monkeypatch.setattr("cluster.leaving.leave", made.leave)
    monkeypatch.setattr("cluster.leaving._require_listener", lambda address: None)
    monkeypatch.setattr("cluster.leaving.await_notice", lambda notified: None)
    monkeypatch.setattr("cluster.leaving.AGAIN", 0.2)
    yield made
    signal.alarm(0)
    logging.disable(logging.NOTSET)


def test_after_the_notice_leaving_is_tried_again_with_the_time_that_is_left(
    head: _Head, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--on-notice", "aws", "--within", "30", "--address", "h:1"]) == 0
    assert [wait for _, wait in head.asked] == [False] * 4
    assert head.asked[0][0] == 30
    assert 25 < head.asked[-1][0] < 30
    assert capsys.readouterr().out == "leaving within 30 s: node\n"


def test_after_the_notice_it_is_tried_until_the_time_is_up(head: _Head, capsys: pytest.CaptureFixture[str]) -> None:
    head.failures = [OSError(f"no route, {number}") for number in range(100)]
    assert main(["--on-notice", "aws", "--within", "1", "--address", "h:1"]) == 1
    assert 1 < len(head.asked) <= 5
    assert f"h:1: could not leave: no route, {len(head.asked) - 1}\n" in capsys.readouterr().out


def test_a_pod_tries_again_when_ray_is_in_trouble_and_not_when_nobody_is_there(head: _Head) -> None:
    assert main(["--within", "30", "--address", "h:1"]) == 1
    assert len(head.asked) == 1
    assert main(["--within", "30", "--address", "h:1"]) == 0
    assert len(head.asked) == 4


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
    assert "could not leave: [Errno 111] Connection refused" in capsys.readouterr().out


def test_a_head_that_is_frozen_holds_nobody_up_for_longer_than_there_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        ended = subprocess.run(
            [sys.executable, "-m", "cluster.leaving", "--within", "2", "--address", address], check=False
        )
    assert ended.returncode == -signal.SIGALRM
    assert time.monotonic() - started < 15
