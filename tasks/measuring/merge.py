"""The task that puts the shards of an evaluation together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from tasks.attacks import Attack, parts_of
from tasks.measuring.evaluate import metrics_of
from tasks.measuring.outcomes import FILE, Outcomes
from tasks.task import Context, Result, Stored, Task


class MergeOutcomes(Task):
    """The evaluation of all examples from those of its shards.

    Inputs are evaluations of stretches of examples by the same attacks, in the order of their names. Metrics and file
    are those of one evaluation of all of them, except that each shard was probed for masking by itself.
    """

    kind: Literal["merge-outcomes"] = "merge-outcomes"
    attacks: tuple[Attack, ...] = ()
    """Those of the shards."""
    classes: int = Field(ge=1)
    """Of the data: examples may be drawn from fewer."""
    votes: int = Field(default=1, ge=1)
    """Those of the shards."""

    def run(self, context: Context, **inputs: Stored) -> Result:
        """Joins outcomes and adds up what was counted.

        Raises:
            ValueError: the shards come from different attacks or epsilons.
        """
        shards = [inputs[name] for name in sorted(inputs)]
        outcomes = Outcomes.joined([Outcomes.from_bytes(shard.read(FILE)) for shard in shards])
        metrics = [shard.metrics for shard in shards]
        together = metrics_of(
            outcomes,
            parts_of(self.attacks),
            self.classes,
            self.votes,
            probes=_summed([each["probes"] for each in metrics]),
            rejected=[sum(counts) for counts in zip(*(each["rejected"] for each in metrics), strict=True)],
            costs=_summed([each["costs"] for each in metrics]),
        )
        return Result(together, {FILE: outcomes.to_bytes()})


def _summed(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Counts of several shards, added up by name."""
    return {name: sum(each[name] for each in counts) for name in counts[0]}
