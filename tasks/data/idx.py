"""The IDX format, in which MNIST and the data sets made in its image are published."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tasks.data.prepared import Labelled


def decoded(files: Mapping[str, bytes]) -> tuple[Labelled, Labelled]:
    """The training and the test part out of the four files named as MNIST's are."""
    return _part(files, "train"), _part(files, "t10k")


def _part(files: Mapping[str, bytes], name: str) -> Labelled:
    images = _array(files[f"{name}-images-idx3-ubyte"])
    return Labelled(images[:, None], _array(files[f"{name}-labels-idx1-ubyte"]).astype(np.int64))


def _array(content: bytes) -> NDArray[np.uint8]:
    """The header is two zero bytes, the type (8: unsigned bytes), the rank and each dimension as big-endian int32."""
    rank = content[3]
    shape = np.frombuffer(content, dtype=">i4", count=rank, offset=4)
    pixels = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape)
    return pixels.copy()  # PyTorch takes no read-only array
