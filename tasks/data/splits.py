"""Choices among labelled examples: stratified, seeded, and the same on every machine and library version.

All randomness is the order of raw words of PCG64, a stream that numpy promises not to change; shuffles of numpy and
PyTorch carry no such promise, and a split is part of what a stored result means.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tasks.seeds import seed_of

Positions = NDArray[np.int64]
Labels = NDArray[np.int64]


def shuffled(count: int, *purpose: int | str) -> Positions:
    """A random permutation of `range(count)` for this purpose."""
    return np.argsort(_words(count, *purpose), kind="stable")


def class_by_class(labels: Labels, *purpose: int | str) -> Positions:
    """All positions, the lowest class first, in random order within each class."""
    order = shuffled(len(labels), *purpose)
    return order[np.argsort(labels[order], kind="stable")]


def stratified(labels: Labels, count: int, *purpose: int | str) -> Positions:
    """`count` positions in ascending order, every class in proportion to its frequency.

    Seats left over by rounding go to the classes with the largest remainders, the lower class first.

    Raises:
        ValueError: there are fewer than `count` examples.
    """
    if count > len(labels):
        raise ValueError(f"{count} examples were asked for where there are {len(labels)}")
    _, sizes = np.unique(labels, return_counts=True)
    seats, remainders = np.divmod(count * sizes, max(len(labels), 1))
    seats[np.argsort(-remainders, kind="stable")[: count - seats.sum()]] += 1
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(class_by_class(labels, *purpose)[rank < np.repeat(seats, sizes)])


def noisy(labels: Labels, examples: Positions, rate: float, classes: int, *purpose: int | str) -> Labels:
    """Labels with symmetric noise: exactly `round(rate * N)` of them become another class, each equally likely.

    Noise belongs to the example: a higher rate changes the same labels and more, whichever part of the data is at hand.
    Symmetric noise as in Patrini et al. 2017, "Making deep neural networks robust to label noise".

    Args:
        labels: (N,) in `range(classes)`; left as they are.
        examples: (N,) what identifies each example: its position in the whole data.
        rate: share of labels that change, in [0, 1].
        classes: how many there are.
        purpose: what the noise is for.

    Raises:
        ValueError: there is only one class, so no other to change to.
    """
    if not rate:
        return labels
    if classes < 2:
        raise ValueError("label_noise needs at least two classes")
    words = _words(int(examples.max()) + 1, *purpose)
    changed = np.argsort(words[examples], kind="stable")[: round(rate * len(labels))]
    shifts = _words(len(words), *purpose, "shift")[examples[changed]] % np.uint64(classes - 1)
    result = labels.copy()
    result[changed] = (labels[changed] + 1 + shifts.astype(np.int64)) % classes
    return result


def _words(count: int, *purpose: int | str) -> NDArray[np.uint64]:
    return np.asarray(np.random.PCG64(seed_of(*purpose)).random_raw(count), dtype=np.uint64)
