"""Disks that fill up or turn read-only, servers that lose answers, refuse, or are not there."""

from __future__ import annotations

import asyncio
import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from cluster.flow import Flow
from cluster.order import Terms
from cluster.store import Store, StoreError
from tests.cluster.conftest import BUCKET
from tests.cluster.driving import Driver, ThreadExecutor
from tests.cluster.toys import Wait

ROOT = Path(__file__).parents[2]


# ---- faults of the disk


def _in_own_mounts(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs shell lines as a user who may mount; skips where that is not allowed."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    probe = f"mount -t tmpfs -o size=64k tmpfs '{folder}'"
    allowed = subprocess.run(["unshare", "-m", "sh", "-c", probe], capture_output=True, check=False)
    if allowed.returncode:
        pytest.skip("mounting is not allowed here")
    return subprocess.run(
        ["unshare", "-m", "sh", "-ec", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_a_read_only_folder_is_refused_and_can_still_be_asked_about(tmp_path: Path) -> None:
    code = f"""
from cluster.store import Store, StoreError
try:
    Store.open({str(tmp_path)!r})
except StoreError as error:
    print(error)
"""
    mounts = f"mount -t tmpfs -o size=64k,ro tmpfs '{tmp_path}'"
    answer = _in_own_mounts(f"{mounts}\n{sys.executable} - <<'END'\n{code}END\n", tmp_path)
    assert answer.stdout == f"--store: the folder {tmp_path} is not writable\n", answer.stderr


def test_a_disk_that_became_read_only_is_a_store_error_and_stays_readable(tmp_path: Path) -> None:
    code = f"""
import subprocess
from cluster.store import Store, StoreError
store = Store.open({str(tmp_path)!r})
store.put("a", b"1")
subprocess.run(["mount", "-o", "remount,ro", {str(tmp_path)!r}], check=True)
for act in (lambda: store.put("a", b"2"), lambda: store.create("b", b"2"), lambda: store.delete(["a"])):
    try:
        act()
    except StoreError as error:
        print(str(error).count(chr(10)), "Read-only file system" in str(error))
print(store.get("a"), list(store.paths("")))
subprocess.run(["mount", "-o", "remount,rw", {str(tmp_path)!r}], check=True)
print(store.create("b", b"2"))
"""
    mounts = f"mount -t tmpfs -o size=64k tmpfs '{tmp_path}'"
    answer = _in_own_mounts(f"{mounts}\n{sys.executable} - <<'END'\n{code}END\n", tmp_path)
    assert answer.stdout == "0 True\n" * 3 + "b'1' ['a']\nTrue\n", answer.stderr


def test_a_full_disk_is_a_store_error_and_the_store_lives_on_when_space_is_freed(tmp_path: Path) -> None:
    code = f"""
from cluster.store import Store, StoreError
store = Store.open({str(tmp_path)!r})
store.put("old", b"o" * 50_000)
store.put("ballast", b"b" * 100_000)
for act in (lambda: store.put("old", b"n" * 200_000), lambda: store.create("new", b"n" * 200_000)):
    try:
        act()
    except StoreError as error:
        print(str(error).count(chr(10)), "No space left" in str(error))
print(store.get("old") == b"o" * 50_000, store.get("new"), sorted(store.paths("")))
store.delete(["ballast"])
print(store.create("new", b"n" * 150_000), store.get("new") == b"n" * 150_000)
"""
    mounts = f"mount -t tmpfs -o size=256k tmpfs '{tmp_path}'"
    answer = _in_own_mounts(f"{mounts}\n{sys.executable} - <<'END'\n{code}END\n", tmp_path)
    assert answer.stdout == "0 True\n" * 2 + "True None ['ballast', 'old']\nTrue True\n", answer.stderr


def test_room_can_be_made_on_a_disk_that_is_full_to_the_last_byte(tmp_path: Path) -> None:
    code = f"""
import sys
from cluster.collect import collect
from cluster.store import Store
store = Store.open({str(tmp_path)!r})
old = "steps/ab/" + "ab" * 32
store.put(old + "/0001/checkpoint", b"c" * 20_000)
store.put("probe/left-over", b"w" * 20_000)
try:
    with open({str(tmp_path / "ballast")!r}, "wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(512))
except OSError as error:
    print(error.strerror)
store.clock()
kinds = collect(store, remove=True, grace=-1.0).kinds
print([kind.things for kind in kinds if kind.things], list(store.paths("steps")))
"""
    mounts = f"mount -t tmpfs -o size=128k tmpfs '{tmp_path}'"
    answer = _in_own_mounts(f"{mounts}\n{sys.executable} - <<'END'\n{code}END\n", tmp_path)
    assert answer.stdout == "No space left on device\n[1, 1] []\n", answer.stderr


# ---- faults of the network


class _Proxy(BaseHTTPRequestHandler):
    """Passes everything on to the server; of the first `faults` writes it loses the answer."""

    behind = ""
    faults = 0
    writes = 0
    answer = 0
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection(type(self).behind)
        connection.request(self.command, self.path, body, dict(self.headers))
        reply = connection.getresponse()
        data = reply.read()
        status = reply.status
        if self.command == "PUT":
            type(self).writes += 1
            if type(self).writes <= type(self).faults:
                if type(self).answer == 0:
                    self.close_connection = True
                    self.connection.close()
                    return
                status, data = type(self).answer, b""
        self.send_response(status)
        for name, value in reply.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                self.send_header(name, value)
        size = reply.headers["Content-Length"] if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", size)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_HEAD = do_DELETE = _pass_on  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("answer", [0, 500, 503])
def test_a_lost_answer_on_the_wire_neither_loses_nor_doubles_a_creation(
    s3_server: str, monkeypatch: pytest.MonkeyPatch, answer: int, request: pytest.FixtureRequest
) -> None:
    attributes = {"behind": urlsplit(s3_server).netloc, "faults": 1, "answer": answer}
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), type("Proxy", (_Proxy,), attributes))
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    folder = f"s3://{BUCKET}/lost-{answer}"
    try:
        with monkeypatch.context() as environment:
            environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
            through = Store.open(folder)
        try:
            won = through.create("a", b"writer 1")
        except StoreError:  # allowed: then the caller cannot know, and asks again
            won = through.create("a", b"writer 1")
        assert won
        direct = Store.open(folder)
        assert not direct.create("a", b"writer 2")
        assert direct.get("a") == b"writer 1"
    finally:
        proxy.shutdown()
        proxy.server_close()


def test_a_missing_bucket_is_a_store_error(s3_server: str) -> None:
    store = Store.open("s3://no-such-bucket/x")
    for act in (lambda: store.put("a", b""), lambda: store.create("a", b""), lambda: list(store.paths(""))):
        with pytest.raises(StoreError) as failure:
            act()
        assert "\n" not in str(failure.value)


def test_a_server_that_is_not_there_is_a_store_error_before_long(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        store = Store.open(f"s3://{BUCKET}/x")
        began = time.monotonic()
        with pytest.raises(StoreError) as failure:
            store.put("a", b"1")
    assert time.monotonic() - began < 40
    assert str(failure.value).startswith("a: ")
    assert "\n" not in str(failure.value)


def test_wrong_credentials_are_a_store_error(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses(_Proxy):
        behind, faults, answer = urlsplit(s3_server).netloc, 1, 403

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
        with pytest.raises(StoreError, match=r"^a: ") as failure:
            Store.open(f"s3://{BUCKET}/x").put("a", b"1")
    finally:
        proxy.shutdown()
        proxy.server_close()
    assert "\n" not in str(failure.value)


def test_a_brief_request_to_a_server_that_never_answers_ends_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.store.BRIEF", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "fake")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fake")
        store = Store.open(f"s3://{BUCKET}/x").brief
        began = time.monotonic()
        with pytest.raises(StoreError, match=r"^a: "):
            store.put("a", b"1")
        assert time.monotonic() - began < 3
        with pytest.raises(StoreError, match=r"^a: "):
            store.get("a")


class _Hangs(_Proxy):
    """Answers no further beat while it is told to."""

    faults, hangs, hung, over = 0, False, 0, threading.Event()

    def do_PUT(self) -> None:
        if type(self).hangs and "/lease-" in self.path:
            type(self).hangs = False
            type(self).hung += 1
            type(self).over.wait(30)
            self.close_connection = True
            return
        self._pass_on()


def test_a_step_is_not_given_up_for_one_beat_that_gets_no_answer(
    s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cluster.store.BRIEF", 0.3)
    monkeypatch.setattr(_Hangs, "behind", urlsplit(s3_server).netloc)
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _Hangs)
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
    store = Store.open(f"s3://{BUCKET}/{tmp_path.name}")
    flag, started = tmp_path / "flag", tmp_path / "started"
    made = Driver(store, ThreadExecutor(), Terms(beat=0.1, ttl=1.0, checkpoint=10.0, farewell=1.0))

    async def run(flow: Flow) -> Any:
        step = asyncio.ensure_future(flow.step(Wait(str(flag), str(started))).published())
        while not started.exists():
            await asyncio.sleep(0.01)
        _Hangs.hangs = True
        await asyncio.sleep(1.6)
        flag.touch()
        return await step

    try:
        assert made.run(run).metrics == {"waited": True}
    finally:
        _Hangs.over.set()
        proxy.shutdown()
        proxy.server_close()
    assert _Hangs.hung == 1
    assert (made.count("started"), made.count("retried")) == (1, 0)
