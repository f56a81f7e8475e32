"""Where a task computes, and the numeric policy of its process."""

from __future__ import annotations

import os

import torch


def device_of(gpus: float) -> torch.device:
    """The device for a task that was given this many GPUs: the visible GPU, or the CPU when there is none."""
    return torch.device("cuda" if gpus > 0 and torch.cuda.is_available() else "cpu")


def settle(threads: int) -> None:
    """Makes this process compute the same bytes every time: call it first in `run`, before anything is on a GPU.

    Sets `threads` CPU threads, full float32 (no TF32), and deterministic kernels chosen without timing them. An
    operation that has no deterministic form warns, naming itself, and the task goes on.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once, when its handle is made
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling fresh buffers is a debugging aid that costs a pass over each of them.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
