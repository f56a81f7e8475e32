"""Makes `mnist_mini.npz` out of the four files of MNIST: `python -m tasks.data.build_mnist_mini FOLDER OUTPUT`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.data.mnist import Mnist
from tasks.data.prepared import Labelled
from tasks.data.splits import stratified

TRAIN, TEST, SEED = 10_000, 2_000, 0


def build(folder: Path, output: Path) -> None:
    """Writes a stratified choice of MNIST's training images and of its test images, in MNIST's order.

    Equal files give equal bytes, as far as the installed zlib compresses alike.

    Raises:
        ValueError: a file in `folder` is missing or is not MNIST's.
    """
    train, test = Mnist(root=folder).read()
    train_images, train_labels = _chosen(train, TRAIN, "mnist-mini/train")
    test_images, test_labels = _chosen(test, TEST, "mnist-mini/test")
    np.savez_compressed(
        output,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
    )


def _chosen(part: Labelled, count: int, purpose: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (count, H, W) and labels (count,)."""
    positions = stratified(part.labels, count, SEED, purpose)
    return part.images[positions, 0], part.labels[positions].astype(np.uint8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="holds the four files, gzipped or not")
    parser.add_argument("output", type=Path, help="the file to write")
    given = parser.parse_args()
    build(given.folder, given.output)
