"""A workflow without work, to search over: what is left is what the search itself costs.

Imported by tests when they run and not when they are collected: a workflow is a member of its family from its
definition on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from cluster.flow import Flow
from cluster.runs import Finished
from tests.cluster.toys import Add
from workflows import Workflow
from workflows.figures import Figures


class Idle(Workflow):
    """One step, the same for all."""

    kind: Literal["toy-idle"] = "toy-idle"
    x: float = Field(default=0.5, ge=0, le=1)
    y: float = Field(default=0.5, ge=0, le=1)
    levels: int = Field(default=1, ge=1)
    split: Literal["validation", "test"] = "test"

    async def run(self, flow: Flow) -> None:
        await flow.step(Add(1))

    def figure_names(self) -> tuple[str, ...]:
        return ("high", "wide")

    def figures(self, finished: Sequence[Finished]) -> Figures:
        return Figures({"high": self.x * self.levels, "wide": (1 - self.x) * self.y})


def content(trials: int, **fields: Any) -> dict[str, Any]:
    """A search of so many trials over it."""
    space = {"x": {"float": [0, 1]}, "y": {"float": [0, 1]}, "levels": {"int": [1, 8]}}
    return {
        "kind": "search",
        "base": {"kind": "toy-idle"},
        "space": {"parameters": space},
        "objectives": [{"maximise": "high"}, {"maximise": "wide"}],
        "parallel": 4,
        "budget": {"trials": trials},
        **fields,
    }
