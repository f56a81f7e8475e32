"""A connection to Ray: one of our own on this machine, or a running cluster's."""

from __future__ import annotations

import atexit
import contextlib
import ipaddress
import logging
import os
import re
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from cluster.failures import first_line
from cluster.settings import RAY_ENVIRONMENT
from cluster.token import Token, find, mode

OURS = {**RAY_ENVIRONMENT, "RAY_DEDUP_LOGS": "0"}
A_DAY = str(24 * 60 * 60)
HOST = re.compile("[A-Za-z0-9][A-Za-z0-9._-]*")

_abandoned = threading.Event()


class ClusterUnreachable(RuntimeError):
    """No Ray cluster answers at the address."""


class TokenRefused(ClusterUnreachable):
    """There is a cluster, and another token than the one that was found here, if any, may open it."""


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
        ClusterUnreachable: nothing answers at the address.
        TokenRefused: what answers wants a token, and there is none here or another.
    """
    check_address(address)
    for name, value in OURS.items():
        os.environ.setdefault(name, value)
    if address == "local":
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    else:
        os.environ.setdefault("RAY_AUTH_MODE", mode(os.environ))
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")  # else a line a second while a token is refused
        # A minute after its last word with the head Ray ends a process, whatever else that still has to say or to do.
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", A_DAY)
    import ray  # reads the variables above when it is imported
    import ray._private.worker as printing
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    AuthenticationTokenLoader.instance().reset_cache()  # of an earlier session in this process
    if address != "local":
        check_head(address)
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
        raise ClusterUnreachable(f"--address {address}: {first_line(error)}") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ending)  # Ray has put its own, which exits with code 15, in its place
    try:
        yield ray
    finally:
        if not _abandoned.is_set():
            ray.shutdown()


def abandon() -> None:
    """Lets go of a cluster that answers no more: taking leave of it would take seconds, of a frozen one for ever.

    Ray's threads stay in this process, which can join no cluster again; `leave` ends it.
    """
    import ray

    _abandoned.set()
    atexit.unregister(ray.shutdown)


def is_abandoned() -> bool:
    """Whether this process has let go of its cluster."""
    return _abandoned.is_set()


def leave(code: int) -> NoReturn:
    """Ends this process with a code; one that was abandoned by its cluster too, which Ray would keep, then crash."""
    if _abandoned.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


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
        ValueError: it is neither `local` nor `auto` nor `HOST:PORT`, where an IPv6 address stands in brackets.
    """
    if address in ("local", "auto"):
        return
    host, _, port = address.rpartition(":")
    if not (_is_host(host) and re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536):
        allowed = "allowed are `local`, `auto` and HOST:PORT, where Ray's GCS listens"
        if ":" in host and "/" not in host:
            allowed += "; an IPv6 address goes in brackets, as in [::1]:6379"
        elif not host.isascii():
            allowed += "; a host's name is ASCII (xn--... where it has other letters)"
        raise ValueError(f"--address {address}: {allowed}")


def _is_host(host: str) -> bool:
    if not (host.startswith("[") and host.endswith("]")):
        return HOST.fullmatch(host) is not None
    try:
        ipaddress.IPv6Address(host[1:-1])
    except ValueError:
        return False
    return True


def check_head(address: str) -> None:
    """Asks the head for a sign of life, and is told in milliseconds what is wrong: Ray itself would try for minutes.

    Raises:
        ClusterUnreachable: no head answers.
        TokenRefused: it wants a token, and there is none here or another.
    """
    import grpc
    from ray._private import services

    told = f"--address {address}"
    try:
        found = services.canonicalize_bootstrap_address(address)
    except (OSError, OverflowError, ValueError) as error:
        raise ClusterUnreachable(f"{told}: {first_line(error)} (is the cluster up?)") from None
    token = _token(told)
    with grpc.insecure_channel(found) as channel:
        check = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            check(b"", timeout=5, metadata=[("authorization", f"Bearer {token.value}")] if token else [])
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                wrong = f"the cluster refuses the token in {token.place}" if token else "the cluster wants a token"
                why = f"{wrong} (set RAY_AUTH_TOKEN to the one that it was started with)"
                raise TokenRefused(f"{told}: {why}") from None
            reason = error.details().rpartition(": ")[2].strip("]")
            asked = "" if found == address else f"; Ray asks {found}"
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED or "HTTP" in reason:
                why = (
                    "somebody listens, but does not answer as Ray's head does (is it the right port, and the head up?)"
                )
            else:
                why = f"{reason} (is the cluster up?)"
            raise ClusterUnreachable(f"{told}: {why}{asked}") from None


def _token(told: str) -> Token | None:
    """What Ray will show to the head; nothing where it is to show none."""
    if mode(os.environ) != "token":
        return None
    try:
        token = find(os.environ)
    except ValueError as error:
        raise TokenRefused(f"{told}: {error}") from None
    if token is None:
        raise TokenRefused(f"{told}: RAY_AUTH_MODE is token, but there is none: set RAY_AUTH_TOKEN")
    return token
