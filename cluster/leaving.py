"""Takes this machine's nodes out of their cluster before the machine is taken away: `python -m cluster.leaving`.

Ray then starts nothing on them any more, and the driver asks their steps to save their state and go on elsewhere
(cluster/watch.py). Manifests run it before a pod is stopped, and beside the nodes of spot machines, where it waits for
the notice that the cloud gives through the machine's metadata service.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import logging
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import psutil

ANSWER = 5.0
"""Seconds that the cluster's head, or the metadata service, has to answer."""
AGAIN = 1.0
"""Seconds between two tries to announce that the nodes leave."""
UNCLEAR = (OSError, http.client.HTTPException, ValueError)
"""What a service in trouble makes of its answer: none, half of one, or bytes that are no text."""


def leave(address: str, seconds: int, wait: bool) -> list[str]:
    """Announces that this machine's nodes will be gone, and waits until they are or the time is up.

    Args:
        address: of the cluster's head.
        seconds: until the machine is gone.
        wait: whether to return only when Ray has left this machine, or the time is up.

    Returns:
        The nodes that leave.
    """
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    until = time.time() + seconds
    head = GcsClient(address=address)
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    nodes = [node for node in _alive_here(head) if not node["head"]]
    for node in nodes:
        head.drain_node(node["id"], reason, "the machine is taken away", int(until * 1000))
    while wait and nodes and time.time() < until:
        time.sleep(0.5)
        nodes_left = {node["id"] for node in _alive_here(head)}
        if not nodes_left & {node["id"] for node in nodes}:
            break
    return [node["id"] for node in nodes]


def _leave_in_time(address: str, seconds: int, on_notice: bool) -> list[str]:
    """Tries to leave until that succeeds or the time is up.

    A pod that is stopped gives up at once where nobody listens: its cluster is taken down with it.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            _require_listener(address)
            return leave(address, max(1, round(until - time.monotonic())), wait=not on_notice)
        except Exception as error:  # of the network or of Ray: the machine goes, whatever it was
            if time.monotonic() + AGAIN > until or (isinstance(error, OSError) and not on_notice):
                raise
        time.sleep(AGAIN)


def _require_listener(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()


def _alive_here(head: Any) -> list[dict[str, Any]]:
    """This machine's nodes, as the cluster's head knows them."""
    mine = {place.address for places in psutil.net_if_addrs().values() for place in places}
    return [
        {"id": node_id.hex(), "head": node.is_head_node}
        for node_id, node in head.get_all_node_info(timeout=ANSWER).items()
        if node.state == 0 and node.node_manager_address in mine
    ]


def notified_by_aws(service: str = "http://169.254.169.254") -> bool:
    """Whether EC2 will take this machine back: two minutes before, the service knows a `spot/instance-action`."""
    token = _ask(f"{service}/latest/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    return _ask(f"{service}/latest/meta-data/spot/instance-action", "GET", {"X-aws-ec2-metadata-token": token}) != ""


def notified_by_gcp(service: str = "http://metadata.google.internal") -> bool:
    """Whether Compute Engine takes this machine back: `preempted` becomes TRUE, 30 seconds before."""
    answer = _ask(f"{service}/computeMetadata/v1/instance/preempted", "GET", {"Metadata-Flavor": "Google"})
    return answer.strip() == "TRUE"


CLOUDS: dict[str, Callable[[], bool]] = {"aws": notified_by_aws, "gcp": notified_by_gcp}
"""Whether the cloud has given notice to this machine, by the cloud's name."""


def await_notice(notified: Callable[[], bool], pause: float = 2.0) -> None:
    """Returns when the cloud says that it will take this machine back.

    Args:
        notified: one of `CLOUDS`.
        pause: seconds between two looks.
    """
    while True:
        with contextlib.suppress(*UNCLEAR):  # busy, or not there yet: the next look will tell
            if notified():
                return
        time.sleep(pause)


def _ask(url: str, method: str, headers: dict[str, str]) -> str:
    """What the service answers; nothing where it knows none."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, method=method, headers=headers), timeout=ANSWER
        ) as page:
            return str(page.read().decode())
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return ""
        raise


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m cluster.leaving", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--within", type=int, required=True, metavar="SECONDS", help="until the machine is gone")
    parser.add_argument("--address", default=os.environ.get("RAY_ADDRESS"), help="of the head; default: RAY_ADDRESS")
    parser.add_argument("--on-notice", choices=sorted(CLOUDS), metavar="CLOUD", help="wait for this cloud's notice")
    options = parser.parse_args(arguments)
    if not options.address:
        parser.error("--address HOST:PORT: which cluster to leave")
    if options.on_notice:
        await_notice(CLOUDS[options.on_notice])
    signal.alarm(options.within + 1)  # Ray's client asks a head that is frozen for ever
    try:
        left = _leave_in_time(options.address, options.within, on_notice=bool(options.on_notice))
    except Exception as error:  # of the network or of Ray, as above
        sys.stdout.write(f"{options.address}: could not leave: {error}\n")
        return 1
    sys.stdout.write(f"leaving within {options.within} s: {', '.join(left) or 'no node of this machine'}\n")
    return 0


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # of Ray's client, in this process
    sys.exit(main())
