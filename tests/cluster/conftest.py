"""Stores of every kind, and one Ray session a module."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cluster.session import session
from cluster.store import Store

BUCKET = "hedgerow"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """An S3 server with one bucket, and the environment that leads to it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (
        tempfile.TemporaryFile() as log,
        tempfile.TemporaryDirectory() as cache,
        pytest.MonkeyPatch.context() as environment,
    ):
        server = subprocess.Popen(command, stdout=log, stderr=log)
        environment.setenv("HEDGEROW_CACHE", cache)
        environment.setenv("AWS_ENDPOINT_URL", endpoint)
        environment.setenv("AWS_ACCESS_KEY_ID", "fake")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "fake")
        environment.setenv("AWS_REGION", "us-east-1")
        try:
            make_bucket(endpoint, BUCKET)
            yield endpoint
        finally:
            server.kill()
            server.wait()


def make_bucket(endpoint: str, name: str) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT"), timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


@pytest.fixture(params=["disk", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    return Store.open(url_of(request, tmp_path))


@pytest.fixture(params=["disk", "s3"])
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store that several processes can open."""
    return url_of(request, tmp_path)


def url_of(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "store")
    if request.param == "memory":
        return "memory:///"
    request.getfixturevalue("s3_server")
    return f"s3://{BUCKET}/{uuid4().hex}"


@pytest.fixture
def disk(tmp_path: Path) -> Store:
    """An empty store in a folder."""
    return Store.open(str(tmp_path / "store"))


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray session of two CPUs, shared by the tests of a module."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with session("local", cpus=2) as connected:
        yield connected
