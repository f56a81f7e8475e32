"""What the executor asks of Ray, without Ray."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import executor
from cluster.executor import NODE_ID, RayExecutor
from cluster.order import Order, Terms
from cluster.placement import Needs
from tests.cluster.toys import Add


class Asked:
    """Stands in for the `ray` module: remembers what it was asked for."""

    def __init__(self) -> None:
        self.options: list[dict[str, Any]] = []

    def remote(self, *called: Any, **how: Any) -> Any:
        def options(**given: Any) -> Any:
            self.options.append(given)
            return SimpleNamespace(remote=lambda order: order.attempt)

        return SimpleNamespace(options=options) if called else lambda called: SimpleNamespace(options=options)


def order(**needs: Any) -> Order:
    return Order("ab" * 32, Add(1), {}, "memory://", "d", "d-1", 0, Terms(), needs=Needs(**needs))


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> executor._Head:
    monkeypatch.setattr(executor._Head, "_ask_on", lambda self: None)
    return executor._Head(1.0)


def test_a_node_that_died_of_late_is_avoided_by_name(head: executor._Head) -> None:
    ray = Asked()
    made = RayExecutor(ray)
    made._head = head
    head._note_deaths({"a", "b", "c"})
    made.submit(order())
    head._note_deaths({"b"})
    made.submit(order())
    made.submit(order(labels=(("zone", "x"),)))
    made.submit(order(labels=((NODE_ID, "b"),)))
    assert [asked.get("label_selector") for asked in ray.options] == [
        None,
        {NODE_ID: "!in(a,c)"},
        {NODE_ID: "!in(a,c)", "zone": "x"},
        {NODE_ID: "b"},
    ]


def test_a_node_is_avoided_for_a_minute_and_not_once_it_is_back(
    head: executor._Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(executor, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    head._note_deaths({"a", "b", "c"})
    head._note_deaths({"c"})
    assert set(head.died) == {"a", "b"}
    head._note_deaths({"a", "c"})
    assert set(head.died) == {"b"}
    now[0] += 59
    head._note_deaths({"a", "c"})
    assert set(head.died) == {"b"}
    now[0] += 2
    head._note_deaths({"a", "c"})
    assert not head.died
