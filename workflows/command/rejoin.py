"""A cluster that is lost while a run is at work: wait for another at its address, and go on from the store."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

PROBE = "import sys; from cluster.session import session\nwith session(sys.argv[1]) as ray: ray.nodes()"
SECONDS = 30.0
"""Given to a probe: a frozen head takes its connection, and never answers."""


def start_again_when_back(address: str, minutes: float, say: Callable[[str], None]) -> None:
    """Waits for a cluster, then becomes this very command again; returns if there is none in time.

    A process that has lost its cluster cannot join another: what Ray left in it waits for the old one.

    Args:
        address: of the head, `HOST:PORT`.
        minutes: to wait.
        say: takes a line for the user.
    """
    say(f"the cluster at {address} is lost: waiting up to {minutes:g} minutes for one to answer there")
    until = time.monotonic() + 60 * minutes
    while time.monotonic() < until:
        if _answers(address):
            say(f"a cluster answers at {address}: going on, finished steps are found")
            sys.stdout.flush()
            sys.stderr.flush()
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
        time.sleep(2)
    say(f"no cluster has answered at {address} for {minutes:g} minutes")


def _answers(address: str) -> bool:
    try:
        probe = subprocess.run([sys.executable, "-c", PROBE, address], capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode == 0
