"""One thread for each of the workers, and files that take minutes first: one worker would be left alone with them."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch; two busy threads a core are slower
os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray keeps what it finds when a test first imports it

LONG = (
    "test_survival",
    "test_search_survival",
    "test_simulation",
    "test_simulation_further",
    "test_full_disk",
    "test_sweep_survival",
    "test_short",
    "test_crash_points",
    "test_group",
    "test_engine_on_ray",
    "test_drivers",
    "test_colt",
    "test_cli",
)
"""Files of real processes that are started, filled up and killed, and those of the simulator."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG)

    items.sort(key=place)
