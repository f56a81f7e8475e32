"""Who holds a lease, and whether that process still lives."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True)
class Owner:
    """One process, named so that a later one with the same number is not mistaken for it."""

    host: str
    """Host name, boot and process-id namespace: process numbers mean something only within all three."""
    pid: int
    started: float
    """When, as the operating system counts: on Linux in ticks since it booted, which no change of the clock moves."""

    @classmethod
    def me(cls) -> Owner:
        """The owner that is this process."""
        return _owner(os.getpid())

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Owner:
        """The owner that `to_json` wrote."""
        return cls(host=record["host"], pid=record["pid"], started=record["started"])

    def to_json(self) -> dict[str, Any]:
        """A record for the store."""
        return asdict(self)

    @property
    def machine(self) -> str:
        """The name of the machine that it runs on, for people."""
        return self.host.split("/")[0]

    def is_gone(self) -> bool:
        """Whether this process certainly no longer runs; False when it cannot be told from here."""
        if self.host != _this_host():
            return False
        try:
            ended = psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
            return ended or abs(_started(self.pid) - self.started) > 1
        except psutil.NoSuchProcess:
            return True


@cache
def _owner(pid: int) -> Owner:
    return Owner(host=_this_host(), pid=pid, started=_started(pid))


def _started(pid: int) -> float:
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        with contextlib.suppress(OSError):  # gone since
            return float(stat.read_text().rpartition(")")[2].split()[19])
    return psutil.Process(pid).create_time()


@cache
def _this_host() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    marks = [socket.gethostname()]
    if boot.exists():
        marks.append(boot.read_text().strip())
    if namespace.exists():
        marks.append(os.readlink(namespace))
    return "/".join(marks)
