"""House numbers seen from the street."""

from __future__ import annotations

import importlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from tasks.data import Signature
from tasks.data.prepared import Labelled
from tasks.data.published import Downloaded


class Svhn(Downloaded):
    """SVHN, cropped digits (Netzer et al. 2011): 73,257 training and 26,032 test images, 32x32, RGB, 10 classes.

    The digit 0, which the files call 10, is class 0; the extra training images are not used. Reading the files needs
    `scipy`.
    """

    kind: Literal["svhn"] = "svhn"

    known: ClassVar = Signature(3, 32, 32, 10, mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970))
    folder: ClassVar = "SVHN"
    torchvision: ClassVar = "SVHN"
    checksums: ClassVar = {
        "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
        "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    }

    def fetch(self, root: Path) -> None:
        """Downloads the two files into `root/SVHN`."""
        svhn = importlib.import_module("torchvision.datasets").SVHN
        for split in ("train", "test"):
            svhn(root / self.folder, split=split, download=True)

    def decode(self, files: Mapping[str, bytes]) -> tuple[Labelled, Labelled]:
        """The two parts out of two MATLAB files."""
        return _part(files["train_32x32.mat"]), _part(files["test_32x32.mat"])


def _part(content: bytes) -> Labelled:
    from scipy.io import loadmat  # a tenth of a second, which only this data set needs to spend

    entries = loadmat(io.BytesIO(content))
    images = np.ascontiguousarray(entries["X"].transpose(3, 2, 0, 1))
    return Labelled(images, entries["y"].ravel().astype(np.int64) % 10)
