"""A network that is about to be pruned, as a saliency sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from tasks.data import Examples, Signature
from tasks.pruning.mask import Mask


@dataclass(frozen=True)
class Candidate:
    """What a saliency may look at; it leaves all of it as it was.

    Which of `model`, `signature` and `examples` are there depends on what the saliency says that it `sees`.
    """

    weights: Mapping[str, torch.Tensor]
    """The prunable kernels by name, on the CPU; zero where the mask has pruned them."""
    mask: Mask
    """What is still kept; scores of pruned positions are ignored."""
    generator: torch.Generator
    """The only source of randomness, on the CPU."""
    network: nn.Module | None = None
    """The network with these weights, in evaluation mode, on the device of the task; see `model`.

    Its parameters require gradients, and hold none.
    """
    training_part: Examples | None = None
    """The examples that it learns from; see `examples`."""
    images: Signature | None = None
    """What its images are like; see `signature`."""

    @property
    def model(self) -> nn.Module:
        """The network with these weights, in evaluation mode.

        Raises:
            ValueError: it was not given.
        """
        if self.network is None:
            raise ValueError("this saliency looks at the network: give `architecture`")
        return self.network

    @property
    def signature(self) -> Signature:
        """Shape and classes of the network's images.

        Raises:
            ValueError: it was not given.
        """
        if self.images is None:
            raise ValueError("this saliency looks at the network: give `data`")
        return self.images

    @property
    def examples(self) -> Examples:
        """The training split, images as bytes on the CPU.

        Raises:
            ValueError: it was not given.
        """
        if self.training_part is None:
            raise ValueError("this saliency looks at training examples: give `data`")
        return self.training_part
