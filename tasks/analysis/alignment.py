"""The task that reorders the channels of one network after those of another."""

from __future__ import annotations

import hashlib
from typing import Any, Literal, cast

import torch
from pydantic import Field
from safetensors.torch import save

from tasks.analysis.matching import Matching, Pair
from tasks.analysis.matching.weight_matching import WeightMatching
from tasks.analysis.overlap import overlap
from tasks.data import Dataset
from tasks.device import device_of, settle
from tasks.measuring.predictions import BLOCK, images_at
from tasks.measuring.subject import FILES, choose_examples
from tasks.models import Architecture
from tasks.models.channels import Channels, channel_groups, with_channels
from tasks.models.network import Network
from tasks.models.weights import load_weights, restore, weights_to_bytes
from tasks.pruning.mask import Mask
from tasks.task import Context, Result, Stored, Task

MASK = "mask.safetensors"
COMPARED = 256
"""Training images on which the permuted network is compared with what it was."""
TOLERANCE = 1e-3
"""By how much a logit may change, as a part of the largest, or of 1."""


class Align(Task):
    """Permutes one network's channels to match another's, without changing its function (Ainsworth et al. 2023).

    Takes the trainings `first` and `second`, and yields the second with its channels in the order of the first's: files
    as a training leaves them, so that it can be measured, interpolated or pruned in its place. Its mask is permuted
    with it. Metrics beside those that a training is asked for:

    - `sweeps`, and `objective` {before, after}, of the matching;
    - `moved`, the share of the channels that are at another place;
    - `masks`, if both are sparse: `before` and `after`, each {iou, chance} of both masks. `chance` knows nothing of the
      matching, which finds some likeness in masks without any: align a shuffled one to know how much;
    - `function_change`, the largest change of a logit on training images, that should be rounding alone.

    `permutations.safetensors` has for each group of channels, by the tensor that it first indexes, the channel of the
    second network that is now in each place.
    """

    kind: Literal["align"] = "align"
    data: Dataset
    """What both networks learned."""
    architecture: Architecture
    """Both networks."""
    matching: Matching = WeightMatching()
    """What channels are matched by."""
    weights: Literal["last", "best"] = "last"
    """The networks that are compared; the other one of the second training is permuted alike."""
    seed: int = Field(default=0, ge=0)
    """Of the order of groups, and of the drawn examples."""

    def run(self, context: Context, **inputs: Stored) -> Result:
        """The permuted network.

        Raises:
            ValueError: weights do not fit the architecture or are not finite, its channels cannot be followed or it has
                none, there are too few examples, or the permuted network answers otherwise.
        """
        settle(self.threads)
        device = device_of(self.gpus)
        first, second, permuted = (self._built(inputs[name]).to(device) for name in ("first", "second", "second"))
        groups = permutable(first, self.data)
        found = self.matching.match(Pair(first, second, groups, self.data, self.seed))
        choices = list(zip(groups, found.permutations, strict=True))
        source = inputs["second"]
        files: dict[str, bytes] = {}
        for name in sorted(set(FILES.values())):
            restore(permuted, source.read(name))
            permuted.load_state_dict(with_channels(permuted.state_dict(), choices))
            files[name] = weights_to_bytes(permuted)
        restore(permuted, files[FILES[self.weights]])
        masks = [_mask_of(inputs[name]) for name in ("first", "second")]
        metrics: dict[str, Any] = {
            **{name: source.metrics[name] for name in ("step", "density", "parameters")},
            "digest": hashlib.sha256(files[FILES["last"]]).hexdigest(),
            "sweeps": found.sweeps,
            "objective": {"before": found.before, "after": found.after},
            "moved": _moved(found.permutations),
            "function_change": self._change(second, permuted, device),
        }
        if masks[1] is not None:
            mask = Mask(with_channels(masks[1], choices))
            mask.audit_weights(load_weights(files[FILES["last"]]).kernels())
            files[MASK] = mask.to_bytes()
            if masks[0] is not None:
                metrics["masks"] = {"before": overlap(masks[0], masks[1]), "after": overlap(masks[0], mask)}
        files["permutations.safetensors"] = save({group.uses[0].tensor: order for group, order in choices})
        return Result(metrics, files)

    def _built(self, trained: Stored) -> Network:
        with torch.random.fork_rng(devices=[]):  # building draws initial weights, which are overwritten at once
            model = self.architecture.build(self.data.signature())
        restore(model, trained.read(FILES[self.weights]))
        return cast(Network, model.eval().requires_grad_(False))

    def _change(self, before: Network, after: Network, device: torch.device) -> float:
        """The largest difference between the logits of both.

        Raises:
            ValueError: it is more than rounding makes of it.
        """
        _, examples = choose_examples(self.data, "train", min(COMPARED, len(self.data.load("train"))), self.seed)
        change = size = 0.0
        for start in range(0, len(examples), BLOCK):
            images = images_at(examples, torch.arange(start, min(start + BLOCK, len(examples))), device)
            with torch.no_grad():
                old, new = before(images), after(images)
            change = max(change, float((old - new).abs().max()))
            size = max(size, float(old.abs().max()))
        if not change <= TOLERANCE * max(1.0, size):
            raise ValueError(f"the permuted network answers otherwise: logits of up to {size:g} change by {change:g}")
        return change


def permutable(network: Network, data: Dataset) -> tuple[Channels, ...]:
    """The groups of channels of a network, on any device, that can be permuted.

    Raises:
        ValueError: they cannot be followed, or there are none.
    """
    groups = channel_groups(network, data.signature())
    if not groups:
        raise ValueError(f"{type(network.body).__name__} has no channels between its layers: there is nothing to match")
    return groups


def _mask_of(trained: Stored) -> Mask | None:
    return Mask.from_bytes(trained.read(MASK)) if trained.metrics["density"] < 1 else None


def _moved(permutations: tuple[torch.Tensor, ...]) -> float:
    moved = sum(int((order != torch.arange(len(order))).sum()) for order in permutations)
    return moved / sum(map(len, permutations))
