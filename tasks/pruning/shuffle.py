"""The control for a ticket: the same sparsity in every layer, at other positions; or in the network."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.pruning.mask import Mask
from tasks.task import Context, Result, Stored, Task


class ShuffleMask(Task):
    """Permutes a mask within each layer, or over all of them, the control for tickets (Frankle et al. 2021, section 5).

    Takes `mask` (`mask.safetensors`) and yields another with as many weights at uniformly random positions: in every
    layer as many, which is also the random mask at matched layer densities, or in the network as a whole.
    """

    kind: Literal["shuffle-mask"] = "shuffle-mask"
    scope: Literal["layerwise", "global"] = "layerwise"
    """Permute each layer within itself, or the network as a whole."""
    seed: int = Field(default=0, ge=0)
    """Another seed, another permutation."""

    def run(self, context: Context, **inputs: Stored) -> Result:
        """The permuted mask.

        Raises:
            ValueError: the file holds no mask.
        """
        given = Mask.from_bytes(inputs["mask"].read("mask.safetensors"))
        mask = given.shuffled(self.seed) if self.scope == "layerwise" else given.scattered(self.seed)
        return Result(metrics=mask.summary(), files={"mask.safetensors": mask.to_bytes()})
