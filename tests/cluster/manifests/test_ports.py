"""Who may talk to the processes that manifests start: real heads and workers, asked at every port they listen at."""

from __future__ import annotations

import http.client
import importlib
import json
import os
import pkgutil
import re
import secrets
import shlex
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil
import pytest
import ray.core.generated

from tests.cluster.clusters import RAY, free_port
from tests.cluster.manifests.manifests import OPEN_PAGES, documents, made

pytestmark = pytest.mark.faults

HEALTH = "/grpc.health.v1.Health/Check"
PAGES = sorted(
    OPEN_PAGES
    | {"/api/jobs/", "/api/version", "/api/cluster_status", "/api/job_agent/jobs/", "/api/snapshot", "/api/v0/tasks"}
    | {"/metrics", "/nodes", "/logs", "/logical/actors", "/timezone", "/get_runtime_envs_info", "/events"}
)


@dataclass
class Started:
    """A head and a worker, as a manifest starts them."""

    host: str
    token: str
    processes: list[psutil.Process] = field(default_factory=list)

    def ports(self) -> dict[int, str]:
        """Every TCP port that others than this machine can reach, and who listens there."""
        found = {}
        for process in self.processes:
            for member in [process, *process.children(recursive=True)]:
                for socket in member.net_connections("tcp"):
                    address = socket.laddr.ip.removeprefix("::ffff:")
                    if socket.status == psutil.CONN_LISTEN and not address.startswith(("127.", "::1")):
                        found[socket.laddr.port] = " ".join(member.cmdline())[:200] or member.name()
        return found


def _of_kuberay() -> tuple[dict[str, str], list[str], list[str]]:
    """As KubeRay's controller puts `ray start` together (generateRayStartCommand and setMissingRayStartParams)."""
    job = documents(made("kuberay").files()["job.yaml"])[0]
    cluster = job["spec"]["rayClusterSpec"]
    added = {"metrics-export-port": "8080", "dashboard-agent-listen-port": "52365"}
    words = []
    for group in (cluster["headGroupSpec"], cluster["workerGroupSpecs"][0]):
        options = {**added, **group["rayStartParams"]}
        words.append([f"--{name}" if value == "true" else f"--{name}={value}" for name, value in options.items()])
    pairs = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    return {pair["name"]: pair["value"] for pair in pairs}, ["--head", "--no-monitor", *words[0]], words[1]


def _of_ray_up() -> tuple[dict[str, str], list[str], list[str]]:
    config = documents(made("aws").files()["ray-aws.yaml"])[0]
    head, worker = (config[f"{each}_start_ray_commands"][1].partition("ray start ")[2] for each in ("head", "worker"))
    (profile,) = [command for command in config["setup_commands"] if command.startswith("echo 'export PATH")]
    words = [word for word in shlex.split(head) if not word.startswith("--autoscaling-config")]  # would start machines
    return _exported(profile.partition("; ")[2].partition("'")[0]), words, _options(shlex.split(worker))


def _of_slurm() -> tuple[dict[str, str], list[str], list[str]]:
    script = made("slurm").files()["hedgerow.sbatch"].replace("\\\n", " ")
    head, worker = re.findall(r"ray start (--.*?) \$\{HEDGEROW_RAY_OPTIONS", script)
    (exports,) = re.findall(r"^export RAY_task.*$", script, re.MULTILINE)
    known = {"$host": "HOST", "${address##*:}": "0", "$SLURM_CPUS_ON_NODE": "1", "$0": "HOST"}
    for name, value in known.items():
        head, worker = head.replace(name, value), worker.replace(name, value)
    words = [_options(shlex.split(each)) for each in (head, worker)]
    return _exported(exports), words[0], words[1]


def _exported(command: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(command)[1:])


def _options(words: list[str]) -> list[str]:
    """All but those that say where, which is different here."""
    return [word for word in words if word.partition("=")[0] not in ("--address", "--node-ip-address", "--block")]


SOURCES = {"kuberay": _of_kuberay, "ray-up": _of_ray_up, "slurm": _of_slurm}


@pytest.fixture(scope="module", params=SOURCES)
def started(request: pytest.FixtureRequest) -> Iterator[Started]:
    environment, head, worker = SOURCES[request.param]()
    hosts = [each.address for each in psutil.net_if_addrs()["lo"]]
    outside = [
        each.address for name in psutil.net_if_addrs() for each in psutil.net_if_addrs()[name] if each.family == 2
    ]
    host = next((address for address in outside if address not in hosts), None)
    if host is None:
        pytest.skip("this machine has no address but loopback")
    folder = Path(tempfile.mkdtemp(prefix="hedge-", dir="/tmp"))
    cluster = Started(host, secrets.token_hex(16))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {**kept, **environment, "RAY_AUTH_TOKEN": cluster.token, "OMP_NUM_THREADS": "1"}
    port = free_port()
    here = ["--block", f"--temp-dir={folder}", f"--object-store-memory={80 * 2**20}"]  # the last of two counts
    at_head = [f"--node-ip-address={host}", f"--port={port}", f"--dashboard-port={free_port()}",
               f"--ray-client-server-port={free_port()}"]  # fmt: skip
    try:
        for name, words in (("head", [*head, *at_head]), ("worker", [*_options(worker), f"--address={host}:{port}"])):
            log = folder / f"{name}.log"
            own = [f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={free_port()}"]
            cluster.processes.append(
                psutil.Popen([RAY, "start", *words, *here, *own], env=environment, stdout=log.open("wb"),
                             stderr=subprocess.STDOUT, start_new_session=True)
            )  # fmt: skip
            until = time.monotonic() + 90
            while "Ray runtime started" not in log.read_text(errors="replace"):
                assert time.monotonic() < until, log.read_text()[-2000:]
                time.sleep(0.1)
        work = (
            "import ray, time; ray.init(address='auto', log_to_driver=False);"
            "print(ray.get([ray.remote(lambda: 1).remote() for _ in range(4)]), flush=True); time.sleep(600)"
        )
        driver = psutil.Popen(
            [Path(RAY).with_name("python"), "-c", work], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**environment, "RAY_ADDRESS": f"{host}:{port}"}, start_new_session=True,
        )  # fmt: skip
        cluster.processes.append(driver)
        if "--num-cpus=0" not in head:
            assert "[1, 1, 1, 1]" in driver.stdout.readline().decode()
        yield cluster
    finally:
        for process in cluster.processes:
            for member in [*process.children(recursive=True), process]:
                try:
                    member.kill()
                except psutil.NoSuchProcess:
                    continue
        shutil.rmtree(folder, ignore_errors=True)


def _methods() -> list[str]:
    """Every method of every service that Ray's wheel describes, and those of the object manager, which it does not."""
    found = {"/ray.rpc.ObjectManagerService/Push", "/ray.rpc.ObjectManagerService/Pull"}
    for module in pkgutil.iter_modules(ray.core.generated.__path__):
        if not module.name.endswith("_pb2"):
            continue
        described = importlib.import_module(f"ray.core.generated.{module.name}").DESCRIPTOR
        for service in described.services_by_name.values():
            found |= {f"/{service.full_name}/{method.name}" for method in service.methods}
    return sorted(found)


def _answers(host: str, port: int, methods: list[str], token: str | None) -> dict[str, str]:
    """What a port says to each method: a status, or OK. Empty when it does not speak gRPC."""
    metadata = [("authorization", f"Bearer {token}")] if token else None
    said: dict[str, str] = {}
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        for method in methods:
            try:
                channel.unary_unary(method)(b"", timeout=10, metadata=metadata)
                said[method] = "OK"
            except grpc.RpcError as error:
                said[method] = error.code().name
                if said[method] == "UNAVAILABLE":
                    return {}
    return said


def _page(host: str, port: int, path: str, token: str | None, data: bytes | None = None) -> int:
    """The status of a page; 0 when the port does not speak HTTP."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(f"http://{host}:{port}{path}", data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError, urllib.error.URLError, http.client.HTTPException):
        return 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("token", [None, "0" * 32], ids=["no token", "a wrong token"])
def test_every_port_refuses_who_has_not_the_token(started: Started, token: str | None) -> None:
    ports = started.ports()
    assert len(ports) >= 8, ports
    methods = [HEALTH, *_methods()]
    refusing = set()
    for port, listener in ports.items():
        where = f"port {port} of {listener}"
        pages = {path: _page(started.host, port, path, token) for path in PAGES}
        if any(pages.values()):
            shown = {path for path, status in pages.items() if status not in (401, 403, 404)}
            assert shown <= OPEN_PAGES, f"{where} shows {shown}"
            job = json.dumps({"entrypoint": "id"}).encode()
            assert _page(started.host, port, "/api/jobs/", token, job) in (401, 403), where
            refusing.add(port)
            continue
        said = _answers(started.host, port, methods, token)
        if not said and port not in started.ports():
            continue  # a worker that was not needed any more
        assert said, f"{where} speaks neither HTTP nor gRPC"
        answered = {method for method, status in said.items() if status not in ("UNAUTHENTICATED", "UNIMPLEMENTED")}
        assert answered <= {HEALTH}, f"{where} answers {answered}: {[said[method] for method in answered]}"
        assert "UNAUTHENTICATED" in said.values(), f"{where} has no method that is guarded"
        refusing.add(port)
    assert refusing >= ports.keys() & started.ports().keys()


def test_who_has_the_token_is_let_in(started: Started) -> None:
    nodes = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"
    said = [_answers(started.host, port, [nodes], started.token) for port in started.ports()]
    assert {nodes: "OK"} in said


def test_metrics_are_served_to_nobody(started: Started) -> None:
    assert not [port for port in started.ports() if _page(started.host, port, "/metrics", None) == 200]
