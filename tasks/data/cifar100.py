"""Small colour photographs of a hundred kinds of things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from tasks.data import Signature
from tasks.data.cifar10 import unpickled
from tasks.data.prepared import Labelled
from tasks.data.published import Downloaded


class Cifar100(Downloaded):
    """CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test photographs, 32x32, RGB, 100 fine classes."""

    kind: Literal["cifar100"] = "cifar100"

    known: ClassVar = Signature(3, 32, 32, 100, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))
    folder: ClassVar = "cifar-100-python"
    torchvision: ClassVar = "CIFAR100"
    checksums: ClassVar = {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}

    def decode(self, files: Mapping[str, bytes]) -> tuple[Labelled, Labelled]:
        """The two parts out of the Python version's two files."""
        return unpickled([files["train"]], b"fine_labels"), unpickled([files["test"]], b"fine_labels")
