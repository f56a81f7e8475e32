"""What `doctor` asks of a cluster: each node from the inside, within a minute, and no answer is an answer too."""

from __future__ import annotations

import base64
import contextlib
import importlib.metadata
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.job_server import JobServer, Request, Unanswered
from cluster.session import ClusterUnreachable, TokenRefused, check_address, check_head
from cluster.settings import RAY_ENVIRONMENT
from cluster.store import Store, StoreError
from cluster.token import Token, find, mode
from workflows.command import probe
from workflows.command.check import Check
from workflows.command.node_checks import Node, judge

PING = 15.0
"""Seconds that a node has to show that it is there; a worker starts in one or two, on a busy machine in some more."""
PATIENCE = 18.0
"""Seconds for the store and for PyTorch on a node, side by side."""
LOOK = 22.0
"""Seconds for a node's whole answer."""
LIMIT = 58.0
"""Seconds after which a cluster is given up."""
JOB_LIMIT = 120.0
"""Seconds for a job that does all that on the cluster, where it has to start first."""
READY = 30.0
"""Seconds that a head has to be ready for jobs."""
TOKEN = (
    "set RAY_AUTH_TOKEN to the token that the cluster was started with, or RAY_AUTH_TOKEN_PATH to a file of mode 600 "
    "that holds it"
)


class NotAsked(Exception):
    """The cluster could not be asked."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(found)
        self.check = Check("ray session", "wrong", found, advice)


def check_cluster(address: str, store_url: str, reached: bool = True) -> list[Check]:
    """Looks at every node of a cluster.

    Args:
        address: `auto`, `HOST:PORT`, or `http://HOST:PORT` of its dashboard: then a job looks.
        store_url: that the nodes are to reach.
        reached: whether the store was reached from here.
    """
    try:
        if "://" in address:
            return list(_by_job(address, store_url))
        check_address(address)
        os.environ.setdefault("RAY_AUTH_MODE", mode(os.environ))  # Ray reads it once a process
        check_head(address)
        return _by_driver(address, store_url, reached)
    except ClusterUnreachable as error:
        return [Check("ray session", "wrong", str(error), _advice(error, "start it"))]
    except NotAsked as problem:
        return [problem.check]
    except ValueError as error:
        return [Check("ray session", "wrong", str(error), "give one of these, or http://HOST:PORT of a dashboard")]


def _by_driver(address: str, store_url: str, reached: bool) -> list[Check]:
    """What the nodes say to a driver on this machine."""
    folder = f"probe/{secrets.token_hex(16)}"
    store = Store.open(store_url) if reached else None
    if store is not None:
        store.put(f"{folder}/marker", folder.encode())
    began = time.monotonic()
    try:
        answer = ask(address, store.url if store is not None else store_url, folder)
    finally:
        if store is not None:
            with contextlib.suppress(StoreError):  # `gc` removes it later
                store.delete([f"{folder}/marker", f"{folder}/race"])
    here = {name: importlib.metadata.version(name) for name in ("torch", "hedgerow")}
    nodes = [Node(about) for about in answer["nodes"]]
    cpus, gpus = (sum(node.about[name] for node in nodes) for name in ("cpus", "gpus"))
    answered = sum(node.answers for node in nodes)
    found = f"{address}: {answered} of {len(nodes)} nodes answered, {cpus:g} CPUs, {gpus:g} GPUs"
    session = Check("ray session", "ok", f"{found}; {time.monotonic() - began:.0f} s")
    return [
        session,
        *judge(nodes, {"ray": answer["ray"], "python": answer["python"], **here}, folder if reached else ""),
    ]


def ask(address: str, store_url: str, folder: str) -> dict[str, Any]:
    """What the nodes of a cluster say of themselves; asked by a process of its own, which can be ended.

    Args:
        address: Ray's.
        store_url: that they are to try.
        folder: in the store, for their tries.

    Raises:
        NotAsked: the cluster is not there, refuses, or does not answer.
    """
    request = {
        "address": address,
        "store": store_url,
        "folder": folder,
        "environment": [*RAY_ENVIRONMENT, *probe.THREADS, "RAY_AUTH_MODE"],
        "patience": PATIENCE,
        "ping": PING,
        "look": LOOK,
    }
    words = base64.b64encode(json.dumps(request).encode()).decode()
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained:
        child = subprocess.Popen(
            [sys.executable, "-P", probe.__file__, words],
            stdout=said,
            stderr=complained,
            env={**RAY_ENVIRONMENT, **os.environ},
        )
        try:
            child.wait(LIMIT)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        lines = [line for line in _text(said).splitlines() if line.startswith(probe.MARK)]
        complaint = [line for line in _text(complained).splitlines() if line.strip()]
    if not lines:
        late = f"no answer within {LIMIT:g} s: its head is frozen or cut off"
        found = f"--address {address}: {complaint[-1].strip() if complaint else late}"
        raise NotAsked(found, "is the cluster up, and its head?")
    answer: dict[str, Any] = json.loads(lines[0].removeprefix(probe.MARK))
    if "error" in answer:
        raise _explained(address, answer["error"])
    return answer


def _explained(address: str, error: str) -> NotAsked:
    """Ray's reason in a line, with what to do about it."""
    if "Version mismatch" in error:
        versions = [line.strip() for line in error.splitlines() if line.strip().startswith(("Ray:", "Python:"))]
        cluster, here = (" and ".join(part).replace(":", "") for part in (versions[:2], versions[2:4]))
        advice = "install the cluster's versions here, or run from there: `hedgerow submit`"
        return NotAsked(f"--address {address}: the cluster has {cluster}, this process {here}", advice)
    return NotAsked(f"--address {address}: {' '.join(error.split())}", "is the cluster up, and this machine in it?")


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode(errors="replace"))


def _by_job(address: str, store_url: str) -> Iterator[Check]:
    """What `doctor` says when it runs on the cluster's head."""
    try:
        server = JobServer.connect(address, _token())
        ray, python = server.versions()
        yield Check("job server", "ok", f"{address}: Ray {ray}" + (f", Python {python}" if python else ""))
        yield _lock_check(address)
        job_id, until = f"doctor-{secrets.token_hex(6)}", time.monotonic() + JOB_LIMIT
        _submit(server, job_id, ("doctor", "--address", "auto", "--store", store_url, "--json"), until)
        while (job := server.job(job_id)) is not None and not job.is_over and time.monotonic() < until:
            time.sleep(0.5)
        if job is None or not job.is_over:
            server.stop(job_id)
            state = f"{job.status}: {job.message}" if job else "gone"
            found = f"after {JOB_LIMIT:g} s job {job_id} is {state}"
            yield Check("job", "wrong", found, "has the head any room, and do its nodes answer?")
            return
        yield from _checks_in(server.logs(job_id), job.message)
    except ClusterUnreachable as error:
        yield Check("job server", "wrong", str(error), _advice(error, "is the cluster up?"))


def _token() -> Token | None:
    """The token that is found here.

    Raises:
        TokenRefused: the file that is named holds none.
    """
    try:
        return find(os.environ)
    except ValueError as error:
        raise TokenRefused(str(error)) from None


def _advice(error: ClusterUnreachable, otherwise: str) -> str:
    return TOKEN if isinstance(error, TokenRefused) else otherwise


def _submit(server: JobServer, job_id: str, words: tuple[str, ...], until: float) -> None:
    """Starts a job; a head that has just started has nobody to run it for some seconds."""
    while True:
        try:
            server.submit(job_id, Request(words, {}))
            return
        except Unanswered:
            if time.monotonic() > until - JOB_LIMIT + READY:
                raise
            time.sleep(1.0)


def _lock_check(address: str) -> Check:
    """Whether the job server lets in who has no token."""
    try:
        JobServer.connect(address, None)
    except ClusterUnreachable:
        return Check("job server's lock", "ok", "who has no token is sent away")
    advice = "start the cluster with RAY_AUTH_MODE=token and a RAY_AUTH_TOKEN"
    return Check("job server's lock", "warn", "whoever reaches it can run programs there", advice)


def _checks_in(log: str, message: str) -> Iterator[Check]:
    """The checks that a job printed among other lines."""
    for place, line in enumerate(log.splitlines()):
        if line == "[":
            records: list[Mapping[str, str]]
            records, _ = json.JSONDecoder().raw_decode("\n".join(log.splitlines()[place:]))
            yield from (Check(**{**record, "name": f"there: {record['name']}"}) for record in records)  # type: ignore[arg-type]
            return
    said = [line.strip() for line in [*message.splitlines(), *log.splitlines()] if line.strip()]
    advice = "hedgerow has to be installed on the nodes: build it into their image"
    yield Check("job", "wrong", said[-1] if said else "the job printed nothing", advice)
