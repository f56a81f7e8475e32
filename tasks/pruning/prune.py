"""Pruning: from weights and their mask to the next, sparser mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Size, nn

from tasks.component import Component, kind_of
from tasks.data import Dataset
from tasks.device import device_of, settle
from tasks.measuring.robustness import seeded_model
from tasks.models import Architecture
from tasks.models.initialise import initialise
from tasks.models.weights import load_weights, restore
from tasks.pruning import Saliency
from tasks.pruning.candidate import Candidate
from tasks.pruning.densities import apportioned, erdos_renyi_kernel
from tasks.pruning.magnitude import Magnitude
from tasks.pruning.mask import Mask
from tasks.seeds import generator
from tasks.task import Context, Result, Stored, Task

Quotas = list[tuple[tuple[str, ...], int]]
"""Kernels that are ranked together, and how many weights they keep."""


def survivors(kept: int, fraction: float) -> int:
    """How many of the kept weights one round leaves."""
    return kept - round(fraction * kept)


class LayerGroup(Component):
    """Kernels that are pruned by a share of their own."""

    kind: Literal["layer-group"] = "layer-group"
    layers: str = Field(min_length=1)
    """Names of kernels, `*` standing for anything: `body.stage3_*`."""
    fraction: float = Field(gt=0, lt=1)
    """Share of the weights that they still keep together that is removed."""


class Prune(Task):
    """Pruning by saliency: removes the weights that matter least (Han et al. 2015; Frankle & Carbin 2019, section 2).

    Takes `trained` (`weights.safetensors`; initial weights if that training stopped at step 0) and, if it has one,
    `mask` (`mask.safetensors`); yields `mask.safetensors`, nested in the given one. Counts are exact: of n candidates
    round(fraction * n) go, halves to the even number. The candidates that are counted are the ones that are ranked, so
    a spared output layer adds nothing to the quota of the others.
    """

    kind: Literal["prune"] = "prune"
    saliency: Saliency = Magnitude()
    """What ranks the weights."""
    scope: Literal["global", "layerwise", "uniform", "erk"] = "global"
    """Rank all candidates together; or remove the same share of what every layer has left; or leave every layer the
    same density; or the densities of the Erdős-Rényi kernel, higher in small layers (Evci et al. 2020)."""
    fraction: float | None = Field(default=None, gt=0, lt=1)
    """Share of the weights still kept that is removed."""
    density: float | None = Field(default=None, gt=0, lt=1)
    """Instead of `fraction`: share of all prunable weights, the output layer's included, that is kept."""
    output_layer: Literal["include", "half", "exclude"] = "include"
    """Like any other layer; half the fraction, ranked by itself (Frankle & Carbin 2019, section 2); or spared."""
    rounds: int | None = Field(default=None, ge=1)
    """Prune in so many rounds of equal shares, with new scores for each (Tanaka et al. 2020); as the saliency does
    unless given."""
    groups: tuple[LayerGroup, ...] = ()
    """Kernels that lose a `fraction` of their own: those of one group are ranked together, and each belongs to the
    first that names it. All others follow `fraction` and `scope`."""
    seed: int = Field(default=0, ge=0)
    """Of a random saliency, and of ties and examples that are drawn."""
    data: Dataset | None = None
    """What the network learns; only for a saliency that sees it."""
    architecture: Architecture | None = None
    """The network that the weights belong to; only for a saliency that sees it."""

    @model_validator(mode="after")
    def _has_one_quota(self) -> Self:
        if (self.fraction is None) == (self.density is None):
            raise ValueError("give either fraction or density")
        if self.output_layer == "half" and self.fraction is None:
            raise ValueError("output_layer: half is half of a fraction; with density give include or exclude")
        return self

    @model_validator(mode="after")
    def _ranks_what_compares(self) -> Self:
        if self.saliency.within_layers and self.scope == "global":
            raise ValueError(
                f"scope: this {kind_of(type(self.saliency))} ranks weights within their layer; give layerwise, "
                "uniform or erk"
            )
        return self

    @model_validator(mode="after")
    def _groups_have_shares_of_their_own(self) -> Self:
        if not self.groups:
            return self
        if self.fraction is None:
            raise ValueError("groups: each loses a share of what it has left; give fraction instead of density")
        if self.scope not in ("global", "layerwise"):
            raise ValueError(f"groups: scope {self.scope} shares out over all layers; allowed: global, layerwise")
        if self.saliency.within_layers:
            raise ValueError(
                f"groups: this {kind_of(type(self.saliency))} ranks weights within their layer, and a group is ranked "
                "together; leave them out"
            )
        return self

    def beside(self, data: Dataset, architecture: Architecture, seed: int = 0) -> Self:
        """The same pruning, told of the network and its data if its saliency looks at them.

        What it does not look at stays out, and so out of its identity.

        Args:
            data: what the network learns.
            architecture: the network.
            seed: of the training, added to that of the pruning if the saliency draws: replicates draw by themselves.
        """
        sees = self.saliency.sees
        return self.model_copy(
            update={
                "data": None if sees == "weights" else data,
                "architecture": None if sees == "weights" else architecture,
                "seed": self.seed + seed if self.saliency.draws else self.seed,
            }
        )

    def run(self, context: Context, **inputs: Stored) -> Result:
        """The sparser mask; `sample_steps` are among its metrics if scoring needed examples.

        Raises:
            ValueError: mask and weights do not fit, pruned weights are alive, scores are not finite, nothing would be
                removed, a layer would be left empty or has fewer weights left than it should keep, or `data` or
                `architecture` are missing.
        """
        settle(self.threads)
        weights = load_weights(inputs["trained"].read("weights.safetensors"))
        kernels = weights.kernels()
        before = (
            Mask.from_bytes(inputs["mask"].read("mask.safetensors")) if "mask" in inputs else Mask.ones_like(kernels)
        )
        before.audit_weights(kernels)
        shapes = {name: kernel.shape for name, kernel in kernels.items()}
        quotas = self.quotas(shapes, before.layer_nnz, weights.output_layer)
        model = self._built(inputs["trained"])
        examples = self.data.load("train") if self.data is not None and self.saliency.sees == "data" else None
        images = self.data.signature() if self.data is not None else None
        rounds, mask, cost = self.rounds or self.saliency.rounds, before, 0
        chance = generator(self.seed, "prune")
        for each in range(1, rounds + 1):
            if model is not None:
                mask.apply_(model)
            alive = {name: kernel.masked_fill(~mask[name], 0) for name, kernel in kernels.items()}
            candidate = Candidate(alive, mask, chance, model, examples, images)
            with seeded_model(device_of(self.gpus), self.seed, "layers", each):
                scores = self.saliency.score(candidate)
            cost += self.saliency.sample_steps(examples) if examples is not None else 0
            mask = _pruned(mask, scores, quotas, before, each / rounds)
            context.progress(each, rounds)
        self._check(before, mask)
        return Result(
            metrics=mask.summary() | ({"sample_steps": cost} if cost else {}),
            files={"mask.safetensors": mask.to_bytes()},
        )

    def quotas(self, shapes: Mapping[str, Size], kept: Mapping[str, int], output: str) -> Quotas:
        """Which kernels are ranked together, and how many weights they keep in the end.

        Args:
            shapes: of the prunable kernels.
            kept: how many weights each has left.
            output: the kernel that yields the logits.

        Raises:
            ValueError: a layer has fewer weights left than it should keep, would keep none, the spared layer leaves
                none to the rest, or a group has no kernel.
        """
        names = tuple(name for name in sorted(kept) if self.output_layer == "include" or name != output)
        apart: Quotas = [
            (members, survivors(sum(kept[name] for name in members), group.fraction))
            for members, group in zip(self._grouped(names), self.groups, strict=True)
        ]
        if self.output_layer == "half" and names:
            apart.append(((output,), survivors(kept[output], (self.fraction or 0) / 2)))
        taken = {name for members, _ in apart for name in members}
        names = tuple(name for name in names if name not in taken)
        if not names:
            return apart
        left = sum(kept[name] for name in names)
        if self.fraction is not None and self.scope == "layerwise":
            return [*(((name,), survivors(kept[name], self.fraction)) for name in names), *apart]
        keep = self._kept_of(left, kept[output], sum(shape.numel() for shape in shapes.values()))
        if self.scope == "global":
            return [(names, keep), *apart]
        counts = self._shared_out({name: shapes[name] for name in names}, kept, keep)
        for name, count in counts.items():
            if not count:
                raise ValueError(f"{self._quota()} leaves none of the {kept[name]} weights of '{name}'")
        return [*(((name,), count) for name, count in counts.items()), *apart]

    def _grouped(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """The kernels of each group, out of those that are ranked."""
        found: list[tuple[str, ...]] = []
        for place, group in enumerate(self.groups):
            free = [name for name in names if not any(name in members for members in found)]
            found.append(tuple(name for name in free if fnmatchcase(name, group.layers)))
            if not found[-1]:
                raise ValueError(
                    f"groups.{place}.layers: '{group.layers}' names none of the kernels that are ranked with others "
                    f"and in no group before it: {', '.join(free) or 'there is none'}"
                )
        return found

    def _kept_of(self, left: int, output: int, total: int) -> int:
        """How many of the weights that are left in the ranked layers stay."""
        if self.fraction is not None:
            return survivors(left, self.fraction)
        keep = round((self.density or 0) * total) - (output if self.output_layer == "exclude" else 0)
        if keep <= 0:
            raise ValueError(
                f"density {self.density} of {total} weights is {round((self.density or 0) * total)}, and the output "
                f"layer, which is spared, has {output}: nothing is left for the others"
            )
        if keep > left:
            raise ValueError(f"density {self.density} is more than is left: {left} of {total} weights")
        return keep

    def _shared_out(self, shapes: Mapping[str, Size], kept: Mapping[str, int], keep: int) -> dict[str, int]:
        room = {name: kept[name] for name in shapes}
        try:
            if self.scope == "erk":
                return erdos_renyi_kernel(shapes, keep, room)
            sizes = {name: shape.numel() for name, shape in shapes.items()}
            return apportioned(room if self.scope == "layerwise" else sizes, keep, room)
        except ValueError as error:
            raise ValueError(f"{self._quota()} with scope {self.scope}: {error}") from error

    def _built(self, trained: Stored) -> nn.Module | None:
        """The network with these weights, if the saliency looks at it."""
        if self.saliency.sees == "weights":
            return None
        if self.architecture is None or self.data is None:
            raise ValueError(
                f"saliency {kind_of(type(self.saliency))} looks at the network: give data and architecture"
            )
        model = initialise(self.architecture, self.data.signature(), 0)
        restore(model, trained.read("weights.safetensors"))
        return model.to(device_of(self.gpus)).eval()

    def _quota(self) -> str:
        beside = " beside groups" if self.groups else ""
        return f"fraction {self.fraction}{beside}" if self.fraction is not None else f"density {self.density}"

    def _check(self, before: Mask, after: Mask) -> None:
        if after.nnz == before.nnz:
            raise ValueError(f"{self._quota()} of the {before.nnz} weights left of {before.total} removes none")
        for name, kept in after.layer_nnz.items():
            if not kept:
                raise ValueError(
                    f"{self._quota()} leaves none of the {before.layer_nnz[name]} weights of '{name}': "
                    f"{after.nnz} of {after.total} weights would stay; prune less or spare the layer"
                )


def _pruned(mask: Mask, scores: Mapping[str, torch.Tensor], quotas: Quotas, before: Mask, progress: float) -> Mask:
    """The mask after this share of the rounds: the count falls by the same factor in each."""
    kept = dict(mask)
    for names, stay in quotas:
        candidates = Mask({name: mask[name] for name in names})
        begin = sum(before.layer_nnz[name] for name in names)
        keep = stay if progress == 1 else max(stay, round(begin * (stay / begin) ** progress)) if begin else 0
        kept.update(candidates.top({name: scores[name] for name in names}, min(keep, candidates.nnz)))
    return Mask(kept)
