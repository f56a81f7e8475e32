"""What a driver is told when it cannot join a cluster: within seconds, and what is wrong."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.clusters import Cluster, cluster

PROGRAM = """
import sys
from cluster.session import ClusterUnreachable, session
try:
    with session(sys.argv[1]):
        print("joined")
except ClusterUnreachable as error:
    print(error)
"""


def told(address: str, home: Path, **environment: str) -> str:
    """What a driver says that has nothing in its environment but this."""
    rest = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    began = time.monotonic()
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM, address],
        capture_output=True, text=True, timeout=120, env={**rest, "HOME": str(home), **environment},
    )  # fmt: skip
    assert time.monotonic() - began < 40  # a second and a half on a quiet machine
    return said.stdout


def test_an_address_where_no_head_answers_is_named_at_once(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("", 0))
        port = silent.getsockname()[1]
        assert "Connection refused (is the cluster up?)" in told(f"127.0.0.1:{port}", tmp_path)
        silent.listen()
        assert "somebody listens, but does not answer" in told(f"127.0.0.1:{port}", tmp_path)
    assert "no.host.invalid:6379: Domain name not found" in told("no.host.invalid:6379", tmp_path)


@pytest.fixture(scope="module")
def head() -> Iterator[Cluster]:
    with cluster() as made:
        yield made


@pytest.mark.faults
def test_a_missing_and_a_wrong_token_are_told_apart(head: Cluster, tmp_path: Path) -> None:
    assert told(head.address, tmp_path, RAY_AUTH_TOKEN=head.token) == "joined\n"
    assert "the cluster wants a token" in told(head.address, tmp_path)
    assert "the cluster refuses the token in RAY_AUTH_TOKEN" in told(head.address, tmp_path, RAY_AUTH_TOKEN="wrong")
    assert "RAY_AUTH_MODE is token, but there is none" in told(head.address, tmp_path, RAY_AUTH_MODE="token")


@pytest.mark.faults
def test_a_token_in_a_file_is_found(head: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(head.token)
    assert told(head.address, tmp_path, RAY_AUTH_TOKEN_PATH=str(path)) == "joined\n"
