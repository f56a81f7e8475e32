"""The recipes: each wires tasks into a graph, and the command line launches them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType

from cluster.flow import Flow
from cluster.runs import Finished
from tasks.component import Component
from workflows.report import Report

if TYPE_CHECKING:
    from workflows.figures import Figures  # and with it torch, which takes longer than most commands


class Workflow(Component):
    """A graph of tasks that reads like the algorithm in its paper."""

    def check(self) -> None:
        """Finds, before any work starts, what no single field could know.

        Raises:
            ValueError: with the path of the field and what is allowed.
        """

    async def run(self, flow: Flow) -> None:
        """Asks for the steps; returns when all that matter are finished."""
        raise NotImplementedError

    def report(self, finished: Sequence[Finished]) -> Report:
        """The closing table and figure, from the steps that are finished so far."""
        raise NotImplementedError

    def planned(self) -> Mapping[str, float]:
        """Figures of a finished run that are known by counting alone, before anything has run."""
        return {}

    def so_far(self, notes: Sequence[Finished]) -> RenderableType | None:
        """What is worth seeing while it runs, from the steps that its driver put down itself; nothing unless said."""
        return None

    def figure_names(self) -> tuple[str, ...]:
        """The figures that a finished run comes to; none if this workflow cannot be searched over."""
        return ()

    def figures(self, finished: Sequence[Finished]) -> Figures:
        """What a search may look at, from all steps of a finished run.

        Args:
            finished: in the order in which they were asked for.
        """
        raise NotImplementedError
