"""How many weights each layer keeps, when the layers do not compete for them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Size


def erdos_renyi_kernel(shapes: Mapping[str, Size], keep: int) -> dict[str, int]:
    """Layers keep the denser the smaller they are, in proportion to `sum(shape) / prod(shape)` (Evci et al. 2020, ERK).

    Layers that would be more than dense are dense, and the others share what is left of them.

    Args:
        shapes: of the kernels, (out, in) or (out, in, height, width).
        keep: weights to keep over all kernels together.

    Returns:
        Counts that sum to `keep`.

    Raises:
        ValueError: there are fewer weights than that.
    """
    sizes = {name: shape.numel() for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        left = keep - sum(sizes[name] for name in dense)
        shares = {name: float(sum(shape)) for name, shape in shapes.items() if name not in dense}
        scale = left / sum(shares.values()) if shares else 0.0
        full = {name for name, share in shares.items() if scale * share > sizes[name]}
        if not full:
            break
        dense |= full
    return {name: sizes[name] for name in dense} | apportioned(shares, left, {name: sizes[name] for name in shares})


def apportioned(shares: Mapping[str, float], seats: int, room: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers that sum to `seats`, each as close to its share of them as possible (Hamilton's method).

    Args:
        shares: how much each should have in relation to the others; not negative.
        seats: what is shared out.
        room: the most that each can have.

    Raises:
        ValueError: there is not room for so many.
    """
    if seats > sum(room.values()):
        raise ValueError(f"{seats} weights are to be kept where there are {sum(room.values())}")
    whole = sum(shares.values())
    exact = {name: seats * share / whole for name, share in shares.items()}
    counts = {name: min(int(count), room[name]) for name, count in exact.items()}
    order = sorted(shares, key=lambda name: (counts[name] - exact[name], name))
    while missing := seats - sum(counts.values()):
        for name in [name for name in order if counts[name] < room[name]][:missing]:
            counts[name] += 1
    return counts
