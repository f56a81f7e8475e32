"""A connection to Ray: one of our own on this machine, or a running cluster's."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.settings import RAY_ENVIRONMENT

OURS = {**RAY_ENVIRONMENT, "RAY_DEDUP_LOGS": "0"}


class ClusterUnreachable(RuntimeError):
    """No Ray cluster answers at the address."""


@contextlib.contextmanager
def session(address: str = "local", cpus: int | None = None, gpus: float | None = None) -> Iterator[Any]:
    """Connects to Ray for the time of a `with` block and gives the `ray` module.

    Local sessions have a token of their own, kept in this process's environment: Ray would otherwise write one that
    others can read to the home folder and use it for later clusters too.

    Args:
        address: `local` for processes of our own that end with this one, `auto` or `HOST:PORT` for a running cluster.
        cpus: CPUs of a local session; all that this process may use when None.
        gpus: GPUs of a local session; all of the machine's when None.

    Raises:
        ValueError: the address is none.
        ClusterUnreachable: nothing answers at the address, or it refuses the token.
    """
    check_address(address)
    if address not in ("local", "auto"):
        _require_listener(address)
    for name, value in OURS.items():
        os.environ.setdefault(name, value)
    if address == "local":
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray reads it once a process
    else:
        os.environ.setdefault("RAY_AUTH_MODE", "token" if _has_token() else "disabled")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")  # else a line a second while a token is refused
    import ray  # reads the variables above when it is imported
    import ray._private.worker as printing

    # Ray prints "A worker died" and the like into the live table; the engine tells the same in its own words. This is
    # the switch that Ray's debugger uses.
    printing._worker_logs_enabled = False
    local = {
        "num_cpus": cpus or usable_cpus(),
        "num_gpus": gpus,
        "include_dashboard": False,
        "object_store_memory": 80 * 2**20,
    }
    ending = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(local if address == "local" else {}),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ClusterUnreachable(
            f"--address {address}: {reason} (is the cluster up, and RAY_AUTH_TOKEN the one it was started with?)"
        ) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ending)  # Ray has put its own, which exits with code 15, in its place
    try:
        yield ray
    finally:
        ray.shutdown()


def usable_cpus() -> int:
    """CPUs that this process may use: fewer than the machine has, in a container or under a batch system."""
    cpus = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        allowed, period = quota.read_text().split()
        if allowed != "max":
            cpus = min(cpus, int(allowed) / int(period))
    return max(1, int(cpus))


def check_address(address: str) -> None:
    """Looks at the form of an address alone.

    Raises:
        ValueError: it is neither `local` nor `auto` nor `HOST:PORT`.
    """
    host, _, port = address.rpartition(":")
    if address not in ("local", "auto") and not (host and port.isdigit()):
        raise ValueError(f"--address {address}: allowed are `local`, `auto` and HOST:PORT")


def _require_listener(address: str) -> None:
    """Looks whether anybody listens at `HOST:PORT`: Ray itself would try for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise ClusterUnreachable(f"--address {address}: {error} (is the cluster up?)") from None


def _has_token() -> bool:
    return bool(os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"))
