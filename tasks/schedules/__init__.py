"""Schedules: the learning rate as a function of the step, so that there is no state to save."""

from __future__ import annotations

from pydantic import Field

from tasks.component import Component


class Schedule(Component):
    """A factor on the learning rate. All positions are shares of the whole training, warm-up included."""

    warmup: float = Field(default=0, ge=0, lt=1)
    """Share of the training over which the learning rate first rises linearly (Goyal et al. 2017, section 2.2)."""

    def factor(self, step: int, steps: int) -> float:
        """The factor at `step` of `steps`, counted from zero.

        The rise multiplies the shape, so a warm-up does not move what comes later. Its first step is not zero, and the
        first step after it is the first at full rate.
        """
        rising = round(self.warmup * steps)
        rise = (step + 1) / (rising + 1) if step < rising else 1.0
        return rise * self.shape(step / steps)

    def shape(self, progress: float) -> float:
        """The factor at this share of the training, in [0, 1), without the warm-up."""
        raise NotImplementedError
