"""Pruning: from trained weights and their mask to the next, sparser mask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from tasks.models.weights import load_weights
from tasks.pruning import Saliency
from tasks.pruning.magnitude import Magnitude
from tasks.pruning.mask import Mask
from tasks.seeds import generator
from tasks.task import Context, Result, Stored, Task


def survivors(kept: int, fraction: float) -> int:
    """How many of the kept weights one round leaves."""
    return kept - round(fraction * kept)


class Prune(Task):
    """One round of pruning: removes the weights that matter least (Frankle & Carbin 2019, section 2).

    Takes `trained` (`weights.safetensors`) and, from the second round on, `mask` (`mask.safetensors`); yields
    `mask.safetensors`, nested in the given one. Counts are exact: of n candidates round(fraction * n) go, halves to the
    even number. The candidates that are counted are the ones that are ranked, so a spared output layer adds nothing to
    the quota of the others. One-shot pruning is one round with a large fraction.
    """

    kind: Literal["prune"] = "prune"
    saliency: Saliency = Magnitude()
    """What ranks the weights."""
    scope: Literal["global", "layerwise"] = "global"
    """Rank all candidates together, or remove the same share of every layer."""
    fraction: float = Field(gt=0, lt=1)
    """Share of the weights still kept that is removed."""
    output_layer: Literal["include", "half", "exclude"] = "include"
    """Like any other layer; half the fraction, ranked by itself (Frankle & Carbin 2019, section 2); or spared."""
    seed: int = Field(default=0, ge=0)
    """Of a random saliency."""

    def run(self, context: Context, **inputs: Stored) -> Result:
        """The sparser mask.

        Raises:
            ValueError: mask and weights do not fit, pruned weights are alive, scores are not finite, nothing would be
                removed, or a layer would be left empty.
        """
        weights = load_weights(inputs["trained"].read("weights.safetensors"))
        kernels = weights.kernels()
        before = (
            Mask.from_bytes(inputs["mask"].read("mask.safetensors")) if "mask" in inputs else Mask.ones_like(kernels)
        )
        before.audit_weights(kernels)
        scores = self.saliency.score(kernels, before, generator(self.seed, "prune"))
        kept = dict(before)
        for names, fraction in self._groups(before, weights.output_layer):
            candidates = Mask({name: before[name] for name in names})
            stay = survivors(candidates.nnz, fraction)
            kept.update(candidates.top({name: scores[name] for name in names}, stay))
        after = Mask(kept)
        self._check(before, after)
        return Result(metrics=after.summary(), files={"mask.safetensors": after.to_bytes()})

    def _groups(self, mask: Mask, output: str) -> Iterator[tuple[list[str], float]]:
        """Which layers are ranked together, and the share of them to remove."""
        together = [name for name in mask if self.output_layer == "include" or name != output]
        if self.scope == "layerwise":
            yield from (([name], self.fraction) for name in together)
        elif together:
            yield together, self.fraction
        if self.output_layer == "half":
            yield [output], self.fraction / 2

    def _check(self, before: Mask, after: Mask) -> None:
        if after.nnz == before.nnz:
            raise ValueError(
                f"fraction {self.fraction} of the {before.nnz} weights left of {before.total} removes none"
            )
        for name, kept in after.layer_nnz.items():
            if not kept:
                raise ValueError(
                    f"fraction {self.fraction} leaves none of the {before.layer_nnz[name]} weights of '{name}': "
                    f"{after.nnz} of {after.total} weights would stay; prune less or spare the layer"
                )
