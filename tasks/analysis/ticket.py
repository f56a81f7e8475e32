"""The task that says how far a ticket has moved from where it began, and what it shares with another one."""

from __future__ import annotations

from typing import Any, Literal

import torch

from tasks.analysis.interpolation import length
from tasks.analysis.overlap import overlap
from tasks.measuring.subject import FILES
from tasks.models.weights import Weights, load_weights
from tasks.pruning.mask import Mask
from tasks.task import Context, Result, Stored, Task

MASK = "mask.safetensors"


class DescribeTicket(Task):
    """Distance from the start, layer densities and overlap of a ticket (He et al. 2022, arXiv 2206.08684).

    Takes `trained` and, if asked about them, `origin`, the step with the weights that it began with (a training with
    `stop_at`), and `other`, a step with a mask. Metrics: those of its mask (`density`, `kept`, `total`, `layers`,
    `digest`; a dense network keeps everything), and

    - with `origin`: `distance`, the Euclidean distance from there over the weights that are kept, `relative_distance`,
      the same in lengths of these weights at the origin (None if they were all zero there), and `layer_distances`;
    - with `other`: `iou` of both masks, and `chance`, what random masks of these layer densities have in common.
    """

    kind: Literal["ticket"] = "ticket"
    weights: Literal["last", "best"] = "last"
    """Those after the last step, or those of the best validation."""

    def run(self, context: Context, **inputs: Stored) -> Result:
        """Describes the ticket.

        Raises:
            ValueError: pruned weights are alive, or origin or mask are of another network.
        """
        trained = inputs["trained"]
        kernels = load_weights(trained.read(FILES[self.weights])).kernels()
        mask = Mask.from_bytes(trained.read(MASK)) if trained.metrics["density"] < 1 else Mask.ones_like(kernels)
        mask.audit_weights(kernels)
        metrics: dict[str, Any] = mask.summary()
        if "origin" in inputs:
            metrics |= _distances(kernels, load_weights(inputs["origin"].read(FILES["last"])), mask)
        if "other" in inputs:
            metrics |= overlap(mask, Mask.from_bytes(inputs["other"].read(MASK)))
        return Result(metrics)


def _distances(kernels: dict[str, torch.Tensor], origin: Weights, mask: Mask) -> dict[str, Any]:
    start = origin.kernels()
    mask.require_fit(start)
    began = {name: start[name][mask[name]].double() for name in mask}
    moved = {name: kernels[name][mask[name]].double() - began[name] for name in mask}
    distance, size = length(list(moved.values())), length(list(began.values()))
    return {
        "distance": distance,
        "relative_distance": distance / size if size else None,
        "layer_distances": {name: length([part]) for name, part in moved.items()},
    }
