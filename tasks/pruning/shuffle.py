"""The control for a ticket: the same sparsity in every layer, at other positions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.pruning.mask import Mask
from tasks.task import Context, Result, Stored, Task


class ShuffleMask(Task):
    """Permutes a mask within each layer, the control for tickets (Frankle et al. 2021, section 5).

    Takes `mask` (`mask.safetensors`) and yields another with the same count in every layer at uniformly random
    positions. This is also the random mask at matched layer densities, so there is no second control for that.
    """

    kind: Literal["shuffle-mask"] = "shuffle-mask"
    seed: int = Field(default=0, ge=0)
    """Another seed, another permutation."""

    def run(self, context: Context, **inputs: Stored) -> Result:
        """The permuted mask.

        Raises:
            ValueError: the file holds no mask.
        """
        mask = Mask.from_bytes(inputs["mask"].read("mask.safetensors")).shuffled(self.seed)
        return Result(metrics=mask.summary(), files={"mask.safetensors": mask.to_bytes()})
