"""How much of two masks is the same, and how much of it chance explains."""

from __future__ import annotations

from tasks.pruning.mask import Mask


def overlap(first: Mask, second: Mask) -> dict[str, float]:
    """`iou`, kept by both over kept by either, and `chance`, what it would be at random positions.

    By chance, two masks that keep k and l of the n weights of a layer share kl / n of them; both counts are summed over
    layers before they are divided, so that the layers' densities explain nothing beyond it.

    Raises:
        ValueError: the masks are not of the same kernels.
    """
    iou = first.iou(second)
    shared = either = 0.0
    for name, kept in first.layer_nnz.items():
        other = second.layer_nnz[name]
        both = kept * other / first[name].numel()
        shared, either = shared + both, either + kept + other - both
    return {"iou": iou, "chance": shared / either if either else 1.0}
