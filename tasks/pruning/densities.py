"""How many weights each layer keeps, when the layers do not compete for them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Size


def erdos_renyi_kernel(shapes: Mapping[str, Size], keep: int, room: Mapping[str, int] | None = None) -> dict[str, int]:
    """Layers keep the denser the smaller they are, in proportion to `sum(shape) / prod(shape)` (Evci et al. 2020, ERK).

    Layers that would be more than dense are dense, and the others share what is left of them.

    Args:
        shapes: of the kernels, (out, in) or (out, in, height, width).
        keep: weights to keep over all kernels together.
        room: the most that each can have, as in `apportioned`; all of its weights unless given.

    Returns:
        Counts that sum to `keep`.

    Raises:
        ValueError: there are fewer weights than that, or a layer's share is more than there is room for.
    """
    sizes = {name: shape.numel() for name, shape in shapes.items()}
    shares = {name: sum(shape) for name, shape in shapes.items()}
    dense: dict[str, int] = {}
    while True:
        left = keep - sum(dense.values())
        whole = sum(share for name, share in shares.items() if name not in dense)
        full = {name: sizes[name] for name in shapes if name not in dense and left * shares[name] > sizes[name] * whole}
        if not full:
            break
        dense |= full
    # What is dense asks for as much as it has, and the others for their part of the rest.
    room = sizes if room is None else room
    asked = {name: (size, 1) for name, size in dense.items()}
    asked |= {name: (left * share, whole) for name, share in shares.items() if name not in dense}
    return _rounded(asked, keep, room)


def apportioned(shares: Mapping[str, int], seats: int, room: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers that sum to `seats`, each as close to its share of them as there is room (Hamilton's method).

    What is asked of a layer is rounded up only where there is room, so fewer seats than in a round before can always
    be had from what that round has left, although this method may give a layer more of fewer seats.

    Args:
        shares: how much each should have in relation to the others; not negative.
        seats: what is shared out.
        room: the most that each can have.

    Raises:
        ValueError: there is not room for so many, or not for a layer's share.
    """
    whole = sum(shares.values())
    return _rounded({name: (seats * share, whole) for name, share in shares.items()}, seats, room)


def _rounded(asked: Mapping[str, tuple[int, int]], seats: int, room: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers that sum to `seats`, near these fractions: in integers, since floats of large counts round."""
    if seats > sum(room[name] for name in asked):
        raise ValueError(f"{seats} weights are to be kept where there are {sum(room[name] for name in asked)}")
    counts = {name: above // below for name, (above, below) in asked.items()}
    for name, count in counts.items():
        if count > room[name]:
            raise ValueError(f"{count} weights of '{name}' are to be kept, which has {room[name]} left")
    remainders = {name: (above % below) / below for name, (above, below) in asked.items()}
    order = sorted(asked, key=lambda name: (-remainders[name], name))
    while missing := seats - sum(counts.values()):
        for name in [name for name in order if counts[name] < room[name]][:missing]:
            counts[name] += 1
    return counts
