"""Structured pruning: whole channels go, so that what is left is a smaller network and not only a sparser one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from tasks.data import Dataset
from tasks.device import settle
from tasks.models import Architecture
from tasks.models.channels import Channels
from tasks.models.compacted import shrinkable
from tasks.models.network import Network
from tasks.models.prunable import prunable
from tasks.models.weights import load_weights
from tasks.pruning.mask import Mask
from tasks.pruning.prune import survivors
from tasks.task import Context, Result, Stored, Task


@dataclass(frozen=True)
class _Channel:
    """One channel that may go."""

    group: Channels
    place: int

    def cut_(self, kept: Mapping[str, torch.Tensor]) -> int:
        """Takes the weights on both of its sides out of a mask, in place, and says how many of them it kept."""
        gone = 0
        for use in self.group.uses:
            if use.tensor in kept:
                weights = kept[use.tensor].narrow(use.axis, use.first + self.place * use.span, use.span)
                gone += int(weights.sum())
                weights.fill_(False)
        return gone


class PruneChannels(Task):
    """Channel pruning: the filters of the smallest norm go, with the weights on both their sides (Li et al. 2017).

    Takes `trained` (`weights.safetensors`) and, if it has one, `mask` (`mask.safetensors`); yields `mask.safetensors`,
    nested in the given one: the rows of a removed channel in the kernels that make it, and its columns in those that
    take it in, so that nothing of its bias or norm gets through. Hidden units of linear layers are channels too. Those
    of residual streams and of the images stay, and so do the logits and at least one channel of every layer.

    Channels are ranked by the norm of their row in the first kernel that makes them. To compare layers, L1 norms are
    divided by the root of the row's length: then both norms are about the same in all layers at initialisation. After
    training they are not, and `global` may leave a layer its last channel only.

    Metrics are those of the mask and `widths`, the channels kept by the kernel that makes them: what the architecture
    `compacted` needs.
    """

    kind: Literal["prune-channels"] = "prune-channels"
    data: Dataset
    """What the network takes; only the shape of its images counts."""
    architecture: Architecture
    """The network that the weights belong to."""
    norm: Literal["l1", "l2"] = "l1"
    """Of a filter: the sum of its absolute weights, or their Euclidean length."""
    scope: Literal["layerwise", "global"] = "layerwise"
    """Remove the same share in every layer, or rank the channels of all layers together."""
    fraction: float | None = Field(default=None, gt=0, lt=1)
    """Share of the channels left that is removed: of n round(fraction * n), halves to the even number."""
    density: float | None = Field(default=None, gt=0, lt=1)
    """Instead of `fraction`: remove channel by channel until at most this share of all prunable weights is kept."""

    @model_validator(mode="after")
    def _has_one_quota(self) -> Self:
        if (self.fraction is None) == (self.density is None):
            raise ValueError("give either fraction or density")
        return self

    def check_network(self, network: Network) -> None:
        """Finds without weights whether so much of a dense network can go.

        Args:
            network: `architecture` for images of `data`, also on `meta`.

        Raises:
            ValueError: it cannot; says why.
        """
        groups = shrinkable(network, self.data.signature())
        mask = Mask.ones_like(prunable(network))
        self._removed(groups, mask, {group.kernel: torch.zeros(group.size) for group in groups})

    def run(self, context: Context, **inputs: Stored) -> Result:
        """The sparser mask.

        Raises:
            ValueError: mask and weights do not fit the network or each other, pruned weights are alive, norms are not
                finite, no channel can go, nothing would be removed, or so much cannot be.
        """
        settle(self.threads)
        kernels = load_weights(inputs["trained"].read("weights.safetensors")).kernels()
        before = (
            Mask.from_bytes(inputs["mask"].read("mask.safetensors")) if "mask" in inputs else Mask.ones_like(kernels)
        )
        before.audit_weights(kernels)
        data = self.data.signature()
        with torch.device("meta"):
            network = self.architecture.build(data)
        assert isinstance(network, Network)
        before.require_fit(prunable(network))
        groups = shrinkable(network, data)
        scores = {group.kernel: self._scores(kernels[group.kernel]) for group in groups}
        for kernel, norms in scores.items():
            if not norms.isfinite().all():
                raise ValueError(f"a weight in '{kernel}' is NaN or infinite: has training diverged?")
        mask = self._removed(groups, before, scores)
        left = {group.kernel: len(channels_left(group, mask)) for group in groups}
        return Result(mask.summary() | {"widths": left}, {"mask.safetensors": mask.to_bytes()})

    def _scores(self, kernel: torch.Tensor) -> torch.Tensor:
        """(channels,) float64, the norm of each row."""
        rows = kernel.detach().flatten(1).double()
        if self.norm == "l2":
            return rows.square().sum(dim=1).sqrt()
        return rows.abs().sum(dim=1) / math.sqrt(rows.shape[1])

    def _removed(self, groups: Sequence[Channels], before: Mask, scores: Mapping[str, torch.Tensor]) -> Mask:
        """The mask without the channels that go."""
        left = {group.kernel: channels_left(group, before) for group in groups}
        kept = dict(before)
        if self.density is None:
            for channel in self._going(self.fraction or 0, self._ranked(groups, left, scores), left):
                channel.cut_(kept)
            return Mask(kept)
        most, nnz = self.density * before.total, before.nnz
        if nnz <= most:
            raise ValueError(f"density {self.density} is no less than is left: {nnz} of {before.total} weights")
        for channel in self._ranked(groups, left, scores):
            nnz -= channel.cut_(kept)
            if nnz <= most:
                return Mask(kept)
        raise ValueError(
            f"density {self.density} is out of reach: with one channel left in every layer that can shrink, {nnz} of "
            f"{before.total} weights stay, density {nnz / before.total:.4f}"
        )

    def _ranked(
        self, groups: Sequence[Channels], left: Mapping[str, torch.Tensor], scores: Mapping[str, torch.Tensor]
    ) -> list[_Channel]:
        """All but the best channel of each layer, the first to go first; of equals the later one."""
        ranked: list[tuple[float, int, int, _Channel]] = []
        for index, group in enumerate(groups):
            norms = scores[group.kernel].tolist()
            weakest = sorted((norms[place], -place) for place in left[group.kernel].tolist())
            for rank, (norm, place) in enumerate(weakest[:-1], start=1):
                score = norm if self.scope == "global" else rank / len(weakest)
                ranked.append((score, -index, place, _Channel(group, -place)))
        return [channel for *_, channel in sorted(ranked, key=lambda entry: entry[:3])]

    def _going(
        self, fraction: float, ranked: Sequence[_Channel], left: Mapping[str, torch.Tensor]
    ) -> Sequence[_Channel]:
        """Those of the ranked channels that make up this share of all."""
        counts = {kernel: len(places) for kernel, places in left.items()}
        total = sum(counts.values())
        if self.scope == "global":
            quota = total - survivors(total, fraction)
            if quota > len(ranked):
                raise ValueError(
                    f"fraction {fraction} of the {total} channels left is {quota}, but only {len(ranked)} can go: each "
                    f"of {len(counts)} layers keeps one"
                )
            going = ranked[:quota]
        else:
            quotas = {kernel: count - survivors(count, fraction) for kernel, count in counts.items()}
            of_each = {kernel: [each for each in ranked if each.group.kernel == kernel] for kernel in counts}
            going = [each for kernel, channels in of_each.items() for each in channels[: quotas[kernel]]]
        if not going:
            raise ValueError(f"fraction {fraction} of the {total} channels left in {len(counts)} layers removes none")
        return going


def channels_left(group: Channels, mask: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The channels (k,) int64 of a group of which a mask keeps some weight, on whichever side."""
    left = torch.zeros(group.size, dtype=torch.bool)
    for use in group.uses:
        if use.tensor in mask:
            left |= use.of_each(mask[use.tensor], group.size).any(dim=1)
    return left.nonzero().flatten()
