"""What tests of tasks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tasks.device import settle


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Computes as tasks do, on one thread: two on a busy machine are many times slower."""
    threads = torch.get_num_threads()
    settle(1)
    yield
    torch.set_num_threads(threads)
