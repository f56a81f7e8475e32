"""How long a run may still take: from what finished steps took, and from what waits for what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import mean

from cluster.flow import Handle
from cluster.step import processes_of


class Forecast:
    """The time that is left, if every step takes as long as those of its kind did."""

    def __init__(self, handles: Iterable[Handle], cpus: float, gpus: float) -> None:
        """Prepares a forecast.

        Args:
            handles: the steps that are known to be left, each after those that feed it.
            cpus: of the whole cluster.
            gpus: of the whole cluster.
        """
        self._cpus, self._gpus = cpus, gpus
        self._left = {handle.key: handle for handle in handles}
        self._took: dict[str, list[float]] = defaultdict(list)

    def add(self, handle: Handle) -> None:
        """A step that is left and that was not known before."""
        self._left.setdefault(handle.key, handle)

    def end(self, handle: Handle, seconds: float | None = None) -> None:
        """A step that is not left any more; computed in so many seconds, if it was computed just now."""
        self._left.pop(handle.key, None)
        if seconds is not None:
            self._took[handle.task.kind].append(seconds)

    def seconds(self, running: Mapping[str, tuple[float, float]]) -> float | None:
        """The time that is left, or None before anything is known.

        It is the longer of two: of all the work spread over the whole cluster, and of the longest chain of steps that
        wait for each other.

        Args:
            running: seconds since the start and the part done, by key.
        """
        typical = {kind: mean(took) for kind, took in self._took.items()}
        for key, (elapsed, done) in running.items():
            if done > 0.02 and key in self._left:
                typical.setdefault(self._left[key].task.kind, elapsed / done)
        if not typical:
            return None
        unknown = mean(typical.values())
        work = 0.0
        ends: dict[str, float] = {}
        for key, handle in self._left.items():
            _, done = running.get(key, (0.0, 0.0))
            left = typical.get(handle.task.kind, unknown) * (1 - done)
            work += left * self._share(handle)
            ends[key] = left + max((ends.get(upstream.key, 0.0) for upstream in handle.inputs.values()), default=0.0)
        return max([work, *ends.values()])

    def _share(self, handle: Handle) -> float:
        """The part of the cluster that a step keeps busy."""
        task = handle.task
        share = max(task.threads / max(self._cpus, 1), task.gpus / self._gpus if self._gpus else 0.0)
        return share * processes_of(task)


def in_words(seconds: float | None) -> str:
    """The time that is left, no more exactly than it is known."""
    if seconds is None:
        return "time left: not known yet"
    if seconds < 100:
        return f"about {max(seconds, 1):.0f} s left"
    minutes = seconds / 60
    return f"about {minutes:.0f} min left" if minutes < 100 else f"about {minutes / 60:.1f} h left"
