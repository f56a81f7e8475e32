"""The second half of the simulated schedules: a module of its own, for a core of its own."""

from __future__ import annotations

import pytest

from tests.cluster.simulation.schedules import explore, fail_with


@pytest.mark.timeout(900)
def test_five_thousand_further_schedules_publish_once_lose_nothing_and_end() -> None:
    fail_with([explore(seed) for seed in range(5_000, 10_000)])
