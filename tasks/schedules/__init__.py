"""Schedules: the learning rate as a function of the step, so that there is no state to save."""

from __future__ import annotations

from pydantic import Field

from tasks.component import Component


class Schedule(Component):
    """A factor on the learning rate."""

    warmup: float = Field(default=0, ge=0, le=1)
    """Share of all steps over which the factor first rises linearly from zero."""

    def factor(self, step: int, steps: int) -> float:
        """The factor at `step` of `steps`, counted from zero, warm-up included."""
        if step < (rising := self.warmup * steps):
            return (step + 1) / (rising + 1) * self.after_warmup(0.0)
        return self.after_warmup((step - rising) / max(steps - rising, 1))

    def after_warmup(self, progress: float) -> float:
        """The factor at this share of the steps that follow the warm-up, in [0, 1)."""
        raise NotImplementedError
