"""Measures the memory that a step takes while it runs, and keeps it within its share of a GPU."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

CONTEXT = 768 * 2**20
"""Bytes of a GPU that a process takes beside PyTorch's allocator: CUDA's context, and kernels as they are loaded."""


class Device(Protocol):
    """The GPU that this process was given."""

    total: int
    """Bytes of memory."""

    def begin(self, share: float) -> None:
        """Bounds what this process may take to a part of the memory, 1 being all, and forgets the peak so far."""
        ...

    def peak(self) -> int:
        """The most bytes that were taken since `begin`."""
        ...


class Cuda:
    """The first GPU that PyTorch sees: Ray shows a worker only those that it was given."""

    def __init__(self, torch: Any) -> None:
        self._cuda = torch.cuda
        self.total = int(torch.cuda.get_device_properties(0).total_memory)

    def begin(self, share: float) -> None:
        """Bounds PyTorch's allocator: the context beside it is part of the share, and not of the allocator's."""
        gc.collect()
        self._cuda.empty_cache()
        self._cuda.reset_peak_memory_stats()
        bound = 1.0 if share >= 1 else max(0.0, share - CONTEXT / self.total)
        self._cuda.set_per_process_memory_fraction(bound)

    def peak(self) -> int:
        """What PyTorch's allocator had reserved at the most."""
        return int(self._cuda.max_memory_reserved())


def device_here() -> Device | None:
    """The GPU of this process, if there is one and PyTorch is loaded; this module never loads it."""
    torch = sys.modules.get("torch")
    return Cuda(torch) if torch is not None and torch.cuda.is_available() else None


class Meter:
    """Measures one attempt, from its making to `record`."""

    def __init__(self, gpus: float, gpu_type: str = "", device: Callable[[], Device | None] = device_here) -> None:
        """Begins to measure; from now on the process is held to its share of a GPU.

        Args:
            gpus: that the attempt was given; below 1 it shares one, and must end before it disturbs its neighbours.
            gpu_type: what its node calls its GPUs.
            device: finds the GPU.
        """
        self._type = gpu_type
        self._device = device() if gpus > 0 else None
        if self._device is not None:
            self._device.begin(gpus)
        _forget_peak()

    def record(self) -> dict[str, Any]:
        """The peaks in bytes, for the manifest: `host`, and `gpu` where there is one."""
        found: dict[str, Any] = {"host": _peak()}
        if self._device is not None:
            found["gpu"] = {"type": self._type, "peak": self._device.peak(), "total": self._device.total}
        return found


def _forget_peak() -> None:
    """Resets the peak of this process, where the system can (Linux); elsewhere it covers the process's whole life."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak() -> int:
    """The most memory that this process had in use, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
