"""Order of the tests: files that take minutes come first, or one worker would be left alone with them at the end."""

from __future__ import annotations

import pytest

LONG = ("test_survival", "test_full_disk", "test_search_survival", "test_sweep_survival", "test_colt", "test_cli")
"""Files of real processes that are started, filled up and killed."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG)

    items.sort(key=place)
