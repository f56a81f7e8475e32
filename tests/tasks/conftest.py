"""What tests of tasks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from tasks.device import settle
from tasks.training.validation import Trial


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Computes as tasks do, on one thread: two on a busy machine are many times slower."""
    threads = torch.get_num_threads()
    settle(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Accuracies under attack that a training is to find, one after the other."""

    def script(*accuracies: float) -> None:
        left = iter(accuracies)
        monkeypatch.setattr(Trial, "measure", lambda *_: (next(left), 10))

    return script
