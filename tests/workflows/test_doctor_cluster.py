"""What the doctor says of a cluster's nodes: of reports written by hand, and of two real ones."""

from __future__ import annotations

import copy
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.settings import RAY_ENVIRONMENT
from cluster.store import Store
from tests.cluster.clusters import Cluster, cluster
from workflows.command import doctor, doctor_cluster
from workflows.command.check import Check
from workflows.command.doctor_cluster import check_cluster
from workflows.command.node_checks import Node, judge

HERE = {"ray": "2.60.0", "python": "3.11.7", "torch": "2.15.0", "hedgerow": "0.1.0"}
GOOD: dict[str, Any] = {
    "id": "aaaabbbbcccc",
    "host": "one",
    "head": False,
    "cpus": 4.0,
    "gpus": 1.0,
    "asked": 1000.0,
    "clock": 1000.5,
    "answered": 1001.0,
    "report": {
        "ray": "2.60.0",
        "python": "3.11.7",
        "environment": {**RAY_ENVIRONMENT, "RAY_AUTH_MODE": "token", "OMP_NUM_THREADS": "1"},
        "cpus": 4,
        "token_file": {"path": "/root/.ray/auth_token", "mode": 0o600},
        "disks": {"Ray's temporary folder": {"path": "/tmp/ray", "free": 9e10}},
        "hedgerow": {"version": "0.1.0", "cpus": 4},
        "memory": {"free": 9e10, "total": 1e11},
        "store": {"one_winner": True, "won": True, "marker": "m", "ahead": 0.1},
        "cache": {"path": "/cache", "free": 9e10},
        "torch": {"version": "2.15.0+cu132", "gpus": 1, "seconds": 2.0},
    },
}


def changed(path: str, value: Any, node: Mapping[str, Any] = GOOD) -> dict[str, Any]:
    """A node that differs in one thing."""
    made: dict[str, Any] = copy.deepcopy(dict(node))
    *within, last = path.split(".")
    part = made
    for name in within:
        part = part[name]
    if value is None:
        del part[last]
    else:
        part[last] = value
    return made


def troubles(*nodes: Mapping[str, Any]) -> list[Check]:
    return [check for check in judge([Node(node) for node in nodes], HERE, "m") if check.state != "ok"]


def test_nothing_is_wrong_with_a_good_node() -> None:
    assert troubles(GOOD) == []


@pytest.mark.parametrize(
    ("path", "value", "state", "words"),
    [
        ("report.ray", "2.59.0", "wrong", "Ray 2.59.0, here 2.60.0"),
        ("report.python", "3.12.1", "wrong", "Python 3.12.1, here 3.11.7"),
        ("report.python", "3.11.9", "warn", "Python 3.11.9"),
        ("report.torch.version", "2.11.0", "warn", "PyTorch 2.11.0, here 2.15.0"),
        ("report.torch", {"error": "ImportError: libcudart"}, "wrong", "libcudart"),
        ("report.torch", None, "warn", "takes very long"),
        ("report.hedgerow.version", "0.0.9", "wrong", "hedgerow 0.0.9, here 0.1.0"),
        ("report.hedgerow", {"error": "ModuleNotFoundError: No module named 'cluster'"}, "wrong", "hedgerow cannot be"),
        ("report.store", {"error": "StoreError: aaaabbbbcccc: refused"}, "wrong", "not reached: refused"),
        ("report.store", None, "wrong", "no answer in time"),
        ("report.store.marker", "", "wrong", "a store of its own"),
        ("report.store.one_winner", False, "wrong", "both were told that they won"),
        ("report.store.ahead", -3600.0, "warn", "3600 s off the store's"),
        ("clock", 4600.0, "warn", "3599 s off this machine's"),
        ("clock", 400.0, "warn", "600 s off this machine's"),
        ("cpus", 8.0, "warn", "told of 8 CPUs, and 4 can be used"),
        ("report.environment.OMP_NUM_THREADS", "64", "warn", "OMP_NUM_THREADS=64 for 4 CPUs"),
        ("report.torch.gpus", 0, "wrong", "told of 1 GPUs, and PyTorch sees 0"),
        ("report.torch.gpus", 8, "warn", "PyTorch sees 8 GPUs, and Ray was told of 1"),
        ("report.memory.free", 1e9, "warn", "1.0 GB free"),
        ("report.cache.free", 1e9, "warn", "1.0 GB left for the cache"),
        ("report.environment.RAY_health_check_period_ms", None, "warn", "started without RAY_health_check_period_ms"),
        ("report.environment.RAY_AUTH_MODE", "disabled", "warn", "mode `disabled`"),
        ("report.environment.RAY_AUTH_MODE", None, "warn", "mode `disabled`"),  # though a file holds a token
        ("report.token_file.mode", 0o644, "warn", "mode 0644"),
        ("report", ["Failed to unpickle"], "wrong", "Failed to unpickle"),
    ],
)
def test_each_trouble_is_named_with_the_node_and_what_to_do(path: str, value: Any, state: str, words: str) -> None:
    (check,) = troubles(changed(path, value))
    assert check.state == state
    assert words in check.found
    assert check.found.startswith("one aaaabbbb: ")
    assert check.advice


def test_a_node_whose_hedgerow_cannot_look_for_a_token_has_no_trouble_with_its_token() -> None:
    error = {"error": "ModuleNotFoundError: No module named 'cluster.token'"}
    assert troubles(changed("report.token_file", error)) == []


def test_a_node_that_says_nothing_is_named() -> None:
    silent = {name: GOOD[name] for name in ("id", "host", "head", "cpus", "gpus")}
    (check,) = troubles(silent, {**GOOD, "host": "two"})
    assert check.state == "wrong"
    assert check.found.startswith("one aaaabbbb: no answer")


def test_the_same_trouble_of_many_nodes_is_one_line() -> None:
    lost = changed("report.store.won", False, changed("report.torch.version", "2.11.0"))
    (check,) = troubles(*({**lost, "host": f"host{number}"} for number in range(7)))
    assert "host0 aaaabbbb, " in check.found
    assert "and 2 more: PyTorch 2.11.0" in check.found


def test_two_winners_of_one_race_are_told() -> None:
    (check,) = troubles(GOOD, {**GOOD, "host": "two"})
    assert (check.name, check.state) == ("nodes: race", "wrong")


class Careless(BaseHTTPRequestHandler):
    """An S3 server of one bucket that takes every put, whatever its condition."""

    kept: dict[str, bytes]

    def do_PUT(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.kept[self.path] = self.rfile.read(length)
        self._answer(200)

    def do_GET(self) -> None:
        data = self.kept.get(self.path)
        self._answer(404 if data is None else 200, data or b"")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        """Removes several objects at once."""
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        keys = re.findall("<Key>(.*?)</Key>", text)
        for key in keys:
            self.kept.pop(f"{self.path.split('?')[0]}/{key}", None)
        gone = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        self._answer(200, f"<DeleteResult>{gone}</DeleteResult>".encode())

    def _answer(self, status: int, data: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", '"x"')
        self.send_header("Last-Modified", self.date_time_string())
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def careless_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    kept: dict[str, bytes] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Mine", (Careless,), {"kept": kept}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "fake")
    yield kept
    server.shutdown()
    server.server_close()


def test_a_server_that_ignores_conditions_is_named(careless_server: dict[str, bytes]) -> None:
    found = {check.name: check for check in doctor._store("s3://bucket/some/where")}
    assert found["store"].state == "ok"
    assert found["conditional puts"].state == "wrong"
    assert "If-None-Match" in found["conditional puts"].advice
    assert not careless_server


def test_a_store_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "STORE_PATIENCE", 0.2)
    monkeypatch.setattr(doctor, "try_store", lambda *words: threading.Event().wait())
    (check,) = doctor._store("s3://bucket")
    assert (check.state, "no answer within" in check.found) == ("wrong", True)


def test_another_version_of_ray_is_told_in_one_line() -> None:
    said = (
        "RuntimeError: Version mismatch: The cluster was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
        "This process on node 10.0.0.1 was started with:\n    Ray: 2.59.0\n    Python: 3.11.9\n"
    )
    check = doctor_cluster._explained("host:6379", said).check
    there, here = "the cluster has Ray 2.60.0 and Python 3.11.7", "this process Ray 2.59.0 and Python 3.11.9"
    assert check.found == f"--address host:6379: {there}, {here}"


@pytest.mark.parametrize("address", ["host", "http://127.0.0.1:9", "127.0.0.1:9"])
def test_an_address_where_nobody_is_is_one_wrong_line(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    (check,) = check_cluster(address, str(tmp_path / "store"))
    assert (check.state, address in check.found) == ("wrong", True)
    assert check.advice


@pytest.mark.parametrize("address", ["token.invalid:1", "http://127.0.0.1:9/token"])
def test_a_token_is_advised_only_where_one_was_refused(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t" * 32}.items():
        monkeypatch.setenv(name, value)
    (away,) = check_cluster(address, str(tmp_path / "store"))
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "gone"))
    (missing,) = check_cluster(address.replace("token.invalid", "127.0.0.1"), str(tmp_path / "store"))
    assert "RAY_AUTH_TOKEN" not in away.advice
    assert f"RAY_AUTH_TOKEN_PATH: {tmp_path}/gone: No such file" in missing.found
    assert missing.advice == doctor_cluster.TOKEN


def told(made: Cluster, address: str, store: Path, **environment: str) -> tuple[int, dict[str, dict[str, str]]]:
    """What `hedgerow doctor` ends with and says, with these variables beside those of the cluster."""
    command = [sys.executable, "-m", "workflows.command.cli", "doctor", "--address", address, "--store", str(store)]
    environment = {**made.environment, **environment}
    ran = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, timeout=170)
    return ran.returncode, {record["name"]: record for record in json.loads(ran.stdout)}


@pytest.mark.faults
@pytest.mark.timeout(400)
def test_of_real_nodes_the_badly_set_and_the_frozen_one_are_named(tmp_path: Path) -> None:
    with cluster(1, OMP_NUM_THREADS="1") as made:
        settings = made.environment
        made.environment = {name: value for name, value in settings.items() if name not in RAY_ENVIRONMENT}
        bad = made.add(1, OMP_NUM_THREADS="64")
        made.environment = settings
        code, found = told(made, made.address, tmp_path / "store")
        wrong = [record for record in found.values() if record["state"] == "wrong"]
        assert (code, wrong) == (0, [])
        assert "3 of 3 nodes answered" in found["ray session"]["found"]
        name, _, said = found["nodes: settings"]["found"].partition(": ")
        assert (found["nodes: settings"]["state"], ", ".join(RAY_ENVIRONMENT) in said) == ("warn", True)
        assert "," not in name
        assert "head" not in name
        assert found["nodes: CPUs"]["found"].startswith(f"{name}: OMP_NUM_THREADS=64")
        assert found["nodes: store"]["state"] == found["nodes: race"]["state"] == "ok"
        assert not list(Store.open(str(tmp_path / "store")).paths(""))

        code, found = told(made, made.address, tmp_path / "store", RAY_AUTH_TOKEN="another" * 8)
        assert (code, found["ray session"]["state"]) == (3, "wrong")
        assert "token" in found["ray session"]["found"].lower()

        bad.signal(signal.SIGSTOP)
        began = time.monotonic()
        code, found = told(made, made.address, tmp_path / "store")
        print(f"a frozen node named after {time.monotonic() - began:.0f} s")  # noqa: T201
        assert code == 3
        assert found["nodes: answers"]["state"] == "wrong"
        assert found["nodes: answers"]["found"].startswith(f"{name}: no answer")


@pytest.mark.faults
@pytest.mark.timeout(400)
def test_through_a_dashboard_the_doctor_runs_on_the_head(tmp_path: Path) -> None:
    with cluster(1, dashboard=True) as made:
        address = f"http://127.0.0.1:{made.dashboard_port}"
        _, found = told(made, address, tmp_path / "store")
        assert found["job server"]["state"] == found["job server's lock"]["state"] == "ok"
        assert "2 of 2 nodes answered" in found["there: ray session"]["found"]
        assert found["there: nodes: store"]["state"] == "ok"
        code, found = told(made, address, tmp_path / "store", RAY_AUTH_TOKEN="another" * 8)
        assert (code, found["job server"]["state"]) == (3, "wrong")
        assert "refuses the token" in found["job server"]["found"]
