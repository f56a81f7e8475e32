"""A part of MNIST that comes with hedgerow, so that everything runs without a download.

MNIST is the work of Yann LeCun, Corinna Cortes and Christopher J. C. Burges, made from NIST Special Databases 1 and 3,
and is commonly given as under CC BY-SA 3.0; see `MNIST_LICENSE.md`.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from tasks.data import Signature
from tasks.data.prepared import Labelled, digest_of
from tasks.data.published import Published

CONTENT = "1e0ba8c82f92d79114fca3ed6dc3a53be900e100e979e5cf0a82af7896d56fd4"
"""SHA-256 over the four arrays, not over the file: another zlib packs the same images differently."""

_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_FILE = Path(__file__).with_name("mnist_mini.npz")


class MnistMini(Published):
    """MNIST in miniature (LeCun et al. 1998): 10,000 training and 2,000 test digits, 28x28, grey; needs no download.

    Real images, chosen at random with MNIST's class frequencies, training from training and test from test; made by
    `build_mnist_mini.py`. Figures on its test part are not comparable with those on MNIST's.
    """

    kind: Literal["mnist-mini"] = "mnist-mini"

    known: ClassVar = Signature(1, 28, 28, 10, mean=(0.1307,), std=(0.3082,))

    def fingerprint(self) -> str:
        """A digest of the images and labels; they are compared with it when they are decoded."""
        return digest_of({"content": CONTENT})

    def read(self) -> tuple[Labelled, Labelled]:
        """Unpacks the file that lies beside this module.

        Raises:
            ValueError: it is missing or damaged.
        """
        try:
            with np.load(_FILE, allow_pickle=False) as archive:
                arrays = [archive[name] for name in _ARRAYS]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as problem:
            raise ValueError(f"{_FILE}: missing or damaged ({problem}); install hedgerow again") from problem
        if hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest() != CONTENT:
            raise ValueError(f"{_FILE}: its content is not what this version of hedgerow expects; install it again")
        train_images, train_labels, test_images, test_labels = arrays
        return (
            Labelled(train_images[:, None], train_labels.astype(np.int64)),
            Labelled(test_images[:, None], test_labels.astype(np.int64)),
        )
