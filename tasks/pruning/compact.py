"""From a network under a structured mask to a smaller one that computes the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from tasks.data import Dataset, Examples
from tasks.device import device_of, settle
from tasks.measuring.predictions import BLOCK, images_at, require_answers
from tasks.measuring.subject import FILES
from tasks.models import Architecture
from tasks.models.channels import Channels, with_channels
from tasks.models.compacted import Compacted, shrinkable
from tasks.models.network import Network
from tasks.models.prunable import prunable
from tasks.models.weights import restore, weights_to_bytes
from tasks.pruning.mask import Mask
from tasks.task import Context, Result, Stored, Task

LARGEST = 1e-4
"""How far apart the logits of both networks may be, in relation to the largest of them: rounding, and no more."""


class Compact(Task):
    """Compaction: pruned channels are taken out, and the smaller network proves to be the same (after Li et al. 2017).

    Takes `trained`, a training under a structured mask such as `prune-channels` makes, or any training and such a
    `mask` to put on it. A channel is pruned if none of its weights is left in the kernels that make it; those that take
    it in must be without it too, because a bias or a norm behind the pruned weights still speaks. The network is that
    of the architecture `compacted` with the `widths` among the metrics. Pruned weights within channels that stay keep a
    mask of the smaller shape.

    What it yields can be evaluated and trained further like a training.
    """

    kind: Literal["compact"] = "compact"
    data: Dataset
    """Images on which both networks are compared."""
    architecture: Architecture
    """The network that the weights belong to."""
    examples: int = Field(default=256, ge=1)
    """The first so many images of the training split are compared, or all if there are fewer."""

    def check_network(self, network: Network) -> None:
        """Finds without weights whether a network can be made smaller at all.

        Args:
            network: `architecture` for images of `data`, also on `meta`.

        Raises:
            ValueError: it cannot.
        """
        shrinkable(network, self.data.signature())

    def run(self, context: Context, **inputs: Stored) -> Result:
        """The smaller network.

        Returns:
            Metrics: `widths`, the `architecture` that the weights now belong to (its identity), `parameters` now and
            `before`, `equivalence` {examples, difference} (the largest of a logit, over both files), and what a
            training that starts from here looks for: `step`, `density` (1 unless weights are pruned within the channels
            that stay), `digest`. Files: `weights.safetensors`, `best.safetensors` and, below density 1,
            `mask.safetensors`.

        Raises:
            ValueError: there is no mask, it does not fit or has no pruned channels, a pruned channel is still taken in,
                or the smaller network computes something else.
        """
        settle(self.threads)
        data, device = self.data.signature(), device_of(self.gpus)
        mask = _mask(inputs)
        choices = self._choices(mask)
        widths = {group.kernel: len(channels) for group, channels in choices}
        architecture = Compacted(base=self.architecture, widths=widths)
        everything = self.data.load("train")
        examples = Examples(everything.images[: self.examples], everything.labels[: self.examples])
        files: dict[str, bytes] = {}
        found = []
        with torch.random.fork_rng(devices=[]):  # building draws initial weights, which are overwritten at once
            masked, small = (each.build(data).to(device).eval() for each in (self.architecture, architecture))
        for name in FILES.values():
            restore(masked, inputs["trained"].read(name))
            if "mask" in inputs:
                mask.apply_(masked)
            mask.audit(masked)
            small.load_state_dict(with_channels(masked.state_dict(), choices))
            files[name] = weights_to_bytes(small)
            found.append(_difference(masked, small, examples, device))
        left = Mask(with_channels(mask, choices))
        if left.nnz < left.total:
            files["mask.safetensors"] = left.to_bytes()
        metrics = {
            "step": inputs["trained"].metrics["step"],
            "density": left.density,
            "widths": widths,
            "architecture": architecture.identity(),
            "parameters": _parameters(small),
            "before": _parameters(masked),
            "equivalence": {"examples": len(examples), "difference": max(found)},
            "digest": hashlib.sha256(files["weights.safetensors"]).hexdigest(),
        }
        return Result(metrics, files)

    def _choices(self, mask: Mask) -> list[tuple[Channels, torch.Tensor]]:
        """The channels of every group that stay."""
        data = self.data.signature()
        with torch.device("meta"):
            network = self.architecture.build(data)
        assert isinstance(network, Network)
        mask.require_fit(prunable(network))
        choices = [(group, _staying(group, mask)) for group in shrinkable(network, data)]
        if all(len(channels) == group.size for group, channels in choices):
            raise ValueError(
                f"the mask is not structured: it keeps {mask.nnz} of {mask.total} weights, and some in every channel"
            )
        return choices


def _mask(inputs: Mapping[str, Stored]) -> Mask:
    """The mask given, or else the one that the network was trained under."""
    masked = inputs.get("mask", inputs["trained"])
    if "mask" not in inputs and masked.metrics["density"] == 1:
        raise ValueError("trained is dense, and no mask is given: there is nothing to take out")
    return Mask.from_bytes(masked.read("mask.safetensors"))


def _staying(group: Channels, mask: Mask) -> torch.Tensor:
    """The channels (k,) int64 that some kernel still makes.

    Raises:
        ValueError: another one is still taken in by a kernel, or none is left.
    """
    sides = [torch.zeros(group.size, dtype=torch.bool) for _ in range(2)]
    for use in group.uses:
        if use.tensor in mask:
            sides[use.axis] |= use.of_each(mask[use.tensor], group.size).any(dim=1)
    made = sides[0]
    for use in group.uses:
        if use.axis == 1:
            columns = use.of_each(mask[use.tensor], group.size)
            dangling = (columns.any(dim=1) & ~made).nonzero().flatten().tolist()
            if dangling:
                raise ValueError(
                    f"the mask is not structured: channel {dangling[0]} of '{group.kernel}' has no weights left, but "
                    f"'{use.tensor}' takes it in with {int(columns[dangling[0]].sum())}; {len(dangling)} such channels"
                )
    if not made.any():
        raise ValueError(f"the mask leaves no channel of '{group.kernel}'")
    return made.nonzero().flatten()


def _difference(masked: nn.Module, small: nn.Module, examples: Examples, device: torch.device) -> float:
    """How far apart a logit of both networks is at most.

    Raises:
        ValueError: further than rounding explains.
    """
    apart = largest = 0.0
    for first in range(0, len(examples), BLOCK):
        rows = torch.arange(first, min(first + BLOCK, len(examples)))
        images = images_at(examples, rows, device)
        with torch.no_grad():
            logits, compact = masked(images), small(images)
        require_answers(logits.cpu(), examples.labels[rows])
        apart = max(apart, float((logits - compact).abs().max()))
        largest = max(largest, float(logits.abs().max()))
    if not apart <= LARGEST * largest:
        raise ValueError(
            f"the smaller network is another one: on {len(examples)} images a logit differs by {apart:.3g} where the "
            f"largest is {largest:.3g}; rounding explains {LARGEST:g} of it"
        )
    return apart


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
