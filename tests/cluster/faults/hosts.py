"""Network namespaces as hosts: each with an address and a name of its own, on a bridge that can be cut."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator


class Host:
    """A machine as far as the network can tell."""

    def __init__(self, name: str, address: str, bridge: str) -> None:
        self.name = name
        self.address = address
        self._bridge = bridge
        self._cable = name
        inside = f"{name}i"
        _ip("netns", "add", name)
        _ip("link", "add", self._cable, "type", "veth", "peer", "name", inside)
        _ip("link", "set", inside, "netns", name)
        _ip("link", "set", self._cable, "master", bridge, "up")
        _ip("-n", name, "addr", "add", f"{address}/24", "dev", inside)
        _ip("-n", name, "link", "set", inside, "up")
        _ip("-n", name, "link", "set", "lo", "up")

    @property
    def prefix(self) -> list[str]:
        """The words before a command that is to run on this host."""
        named = ["unshare", "--uts", "sh", "-c", f'hostname {self.name} && exec "$@"', "sh"]
        return ["nsenter", f"--net=/run/netns/{self.name}", *named]

    def cut(self) -> None:
        """Pulls its cable: packets go nowhere, and nobody is told."""
        _ip("link", "set", self._cable, "nomaster")

    def heal(self) -> None:
        """Plugs it in again."""
        _ip("link", "set", self._cable, "master", self._bridge)

    def close(self) -> None:
        """Takes the host away."""
        _ip("netns", "del", self.name)


class Network:
    """Hosts on one bridge; this process is on it too."""

    def __init__(self) -> None:
        pid = os.getpid()
        self._subnet = f"10.{64 + pid // 256 % 128}.{pid % 256}"
        self._bridge = f"hr{pid}"
        self.address = f"{self._subnet}.1"
        self.hosts: list[Host] = []
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self.address}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")

    def host(self) -> Host:
        """Another host."""
        number = len(self.hosts) + 1
        self.hosts.append(Host(f"{self._bridge}h{number}", f"{self._subnet}.{number + 1}", self._bridge))
        return self.hosts[-1]

    def close(self) -> None:
        """Takes all of it away."""
        for host in self.hosts:
            host.close()
        _ip("link", "del", self._bridge)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network, gone after the `with` block."""
    made = Network()
    try:
        yield made
    finally:
        made.close()


def missing() -> str:
    """Why there can be no hosts here, or nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not all(map(shutil.which, ("ip", "nsenter", "unshare"))):
        return "network namespaces need ip, nsenter and unshare"
    try:
        with network() as made:
            made.host()
    except subprocess.CalledProcessError as error:
        return f"network namespaces: {error}"
    return ""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
