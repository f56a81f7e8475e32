"""What a search is after: objectives, and constraints that a network must meet to count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, Self

from pydantic import model_validator

from search_spaces.checked import Checked


class Objective(Checked):
    """A figure to make as large or as small as possible."""

    maximise: str | None = None
    minimise: str | None = None

    @model_validator(mode="after")
    def _has_one_direction(self) -> Self:
        if (self.maximise is None) == (self.minimise is None):
            raise ValueError("an objective is either `maximise: FIGURE` or `minimise: FIGURE`")
        return self

    @property
    def figure(self) -> str:
        """Its name."""
        return self.maximise or self.minimise or ""

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """As Optuna spells it."""
        return "maximize" if self.maximise else "minimize"

    @property
    def sign(self) -> int:
        """What makes more of it better."""
        return 1 if self.maximise else -1


class Constraint(Checked):
    """A bound on a figure: `{figure: clean-drop, at_most: 0.02}`."""

    figure: str
    at_most: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _has_one_bound(self) -> Self:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("a constraint has either `at_most` or `at_least`")
        return self

    def __str__(self) -> str:
        bound = f"<= {self.at_most:g}" if self.at_most is not None else f">= {self.at_least:g}"
        return f"{self.figure} {bound}"

    def violation(self, figures: Mapping[str, float]) -> float:
        """How far beyond the bound; 0 or less where it is met."""
        value = figures[self.figure]
        return value - self.at_most if self.at_most is not None else (self.at_least or 0.0) - value


def meets(figures: Mapping[str, float], constraints: Iterable[Constraint]) -> bool:
    """Whether figures keep to all constraints."""
    return all(constraint.violation(figures) <= 0 for constraint in constraints)
