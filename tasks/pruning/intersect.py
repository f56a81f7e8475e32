"""What several prunings of one network agree to keep."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import prod
from operator import and_
from typing import Any, Literal

from tasks.pruning.mask import Mask
from tasks.task import Context, Result, Stored, Task


class IntersectMasks(Task):
    """Keeps the weights that all of several masks keep (COLT, Hossain et al. 2022, arXiv 2212.12770, section 3).

    Takes at least two masks under names of one's choice and, where the network was sparse before, `before`; each is a
    step with `mask.safetensors`. Yields the positions that all of them keep. Signs and values of weights play no part.
    """

    kind: Literal["intersect-masks"] = "intersect-masks"
    spared: tuple[str, ...] = ()
    """Kernels that no pruning touches, such as the output layer: they do not count in what is said of the pruning."""

    def run(self, context: Context, **inputs: Stored) -> Result:
        """The intersection.

        Returns:
            Metrics: those of the mask, and over the kernels that are not spared

            - `survival`: the share of the weights kept before that is kept now. Where each of P masks prunes a share p,
              it lies between 1 - Pp, if no two prune the same, and 1 - p, if all do;
            - `overlap`: the share of what a mask prunes that all the others prune too, on average;
            - `chance`: what `overlap` would be on average if every mask pruned as many positions drawn anywhere, and
            - `chance_in_layers`: as many in each kernel, drawn within it.

            The last three are None if nothing is pruned at all.

        Raises:
            ValueError: there are fewer than two masks, their kernels differ, one keeps what was pruned before, or a
                kernel is left with nothing.
        """
        masks = {name: Mask.from_bytes(inputs[name].read("mask.safetensors")) for name in sorted(inputs)}
        first = next(iter(masks.values()), None)
        before = masks.pop("before", None) or (Mask.ones_like(first) if first else None)
        if before is None or len(masks) < 2:
            raise ValueError(f"an intersection is one of at least two masks; found {', '.join(masks) or 'none'}")
        for name, mask in masks.items():
            try:
                nested = mask.nested_in(before)
            except ValueError as misfit:
                raise ValueError(f"mask '{name}': {misfit}") from None
            if not nested:
                raise ValueError(f"mask '{name}' keeps weights that were pruned before: all must come from one mask")
        mask = reduce(and_, masks.values())
        for name, kept in mask.layer_nnz.items():
            if not kept:
                raise ValueError(
                    f"the {len(masks)} masks agree on none of the {before.layer_nnz[name]} weights left of '{name}': "
                    f"{mask.nnz} of {mask.total} weights would stay; prune less in a round, or into fewer parts"
                )
        return Result(
            metrics={**mask.summary(), **self._agreement(before, list(masks.values()), mask)},
            files={"mask.safetensors": mask.to_bytes()},
        )

    def _agreement(self, before: Mask, masks: Sequence[Mask], mask: Mask) -> dict[str, Any]:
        names = [name for name in before if name not in self.spared]
        sizes = [before.layer_nnz[name] for name in names]
        pruned = [[before.layer_nnz[name] - each.layer_nnz[name] for name in names] for each in masks]
        by_all = sum(sizes) - sum(reduce(lambda kept, each: kept | each, masks).layer_nnz[name] for name in names)
        mean = sum(map(sum, pruned)) / len(masks)
        anywhere = _by_chance([sum(each) for each in pruned], sum(sizes))
        in_layers = sum(_by_chance([each[place] for each in pruned], size) for place, size in enumerate(sizes) if size)
        return {
            "survival": sum(mask.layer_nnz[name] for name in names) / sum(sizes),
            "overlap": by_all / mean if mean else None,
            "chance": anywhere / mean if mean else None,
            "chance_in_layers": in_layers / mean if mean else None,
        }


def _by_chance(pruned: Sequence[int], size: int) -> float:
    """How many of `size` positions all prune on average, if each draws so many of them by itself."""
    return size * prod(count / size for count in pruned)
