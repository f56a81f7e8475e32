"""Handwritten digits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from tasks.data import Signature, idx
from tasks.data.prepared import Labelled
from tasks.data.published import Downloaded


class Mnist(Downloaded):
    """MNIST (LeCun et al. 1998): 60,000 training and 10,000 test images of digits, 28x28, grey, 10 classes."""

    kind: Literal["mnist"] = "mnist"

    known: ClassVar = Signature(1, 28, 28, 10, mean=(0.1307,), std=(0.3081,))
    folder: ClassVar = "MNIST/raw"
    torchvision: ClassVar = "MNIST"
    checksums: ClassVar = {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }

    def decode(self, files: Mapping[str, bytes]) -> tuple[Labelled, Labelled]:
        """The two parts out of four IDX files."""
        return idx.decoded(files)
