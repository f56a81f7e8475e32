"""Small colour photographs of ten kinds of things, and the reader that both CIFAR data sets share."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import numpy as np

from tasks.data import Signature
from tasks.data.prepared import Labelled
from tasks.data.published import Downloaded

_TRAINING = tuple(f"data_batch_{number}" for number in range(1, 6))


class Cifar10(Downloaded):
    """CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test photographs, 32x32, RGB, 10 classes."""

    kind: Literal["cifar10"] = "cifar10"

    known: ClassVar = Signature(3, 32, 32, 10, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
    folder: ClassVar = "cifar-10-batches-py"
    torchvision: ClassVar = "CIFAR10"
    checksums: ClassVar = {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    }

    def decode(self, files: Mapping[str, bytes]) -> tuple[Labelled, Labelled]:
        """The two parts out of the Python version's six files."""
        training = (files[name] for name in _TRAINING)
        return unpickled(training, b"labels"), unpickled([files["test_batch"]], b"labels")


def unpickled(batches: Iterable[bytes], labels: bytes) -> Labelled:
    """Pickled batches, one after the other, as one; `labels` is the entry that holds the classes.

    Unpickling runs what the file says: pass content that was compared with the published checksum, and no other.
    """
    entries = [pickle.loads(batch, encoding="bytes") for batch in batches]
    return Labelled(
        images=np.concatenate([entry[b"data"] for entry in entries]).reshape(-1, 3, 32, 32),
        labels=np.concatenate([np.asarray(entry[labels], dtype=np.int64) for entry in entries]),
    )
