"""Photographs of clothes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from tasks.data import Signature, idx
from tasks.data.prepared import Labelled
from tasks.data.published import Downloaded


class FashionMnist(Downloaded):
    """Fashion-MNIST (Xiao et al. 2017): 60,000 training and 10,000 test images of clothes, 28x28, grey, 10 classes."""

    kind: Literal["fashion-mnist"] = "fashion-mnist"

    known: ClassVar = Signature(1, 28, 28, 10, mean=(0.2860,), std=(0.3530,))
    folder: ClassVar = "FashionMNIST/raw"
    torchvision: ClassVar = "FashionMNIST"
    checksums: ClassVar = {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    }

    def decode(self, files: Mapping[str, bytes]) -> tuple[Labelled, Labelled]:
        """The two parts out of four IDX files."""
        return idx.decoded(files)
