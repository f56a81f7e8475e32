"""What is said of an address at which no cluster answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from ray._private import services

from cluster.session import ClusterUnreachable, check_head


@pytest.fixture(autouse=True)
def without_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@pytest.fixture
def web_server() -> Iterator[int]:
    """The port of a plain HTTP server, on loopback alone."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def said_of(address: str) -> str:
    with pytest.raises(ClusterUnreachable) as unreachable:
        check_head(address)
    return str(unreachable.value)


def test_a_web_server_is_not_taken_for_rays_head(web_server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "canonicalize_bootstrap_address", lambda address: address)
    assert said_of(f"127.0.0.1:{web_server}") == (
        f"--address 127.0.0.1:{web_server}: somebody listens, but does not answer as Ray's head does "
        "(is it the right port, and the head up?)"
    )


def test_the_address_that_ray_asks_instead_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        asked = f"127.0.0.1:{bound.getsockname()[1]}"
        monkeypatch.setattr(services, "canonicalize_bootstrap_address", lambda address: asked)
        assert said_of("localhost:1") == (
            f"--address localhost:1: Connection refused (is the cluster up?); Ray asks {asked}"
        )
        assert said_of(asked) == f"--address {asked}: Connection refused (is the cluster up?)"
