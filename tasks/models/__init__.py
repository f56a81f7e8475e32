"""Architectures: networks that take images in [0, 1] and return logits."""

from __future__ import annotations

from torch import nn

from tasks.component import Component
from tasks.data import Signature


class Architecture(Component):
    """A network's shape."""

    def build(self, data: Signature) -> nn.Module:
        """A freshly initialised network, images (N, C, H, W) in [0, 1] to logits (N, classes).

        Initialisation draws from the global generator, as PyTorch's layers do; `tasks.models.initialise` seeds it.

        Raises:
            ValueError: the image shape does not fit the architecture.
        """
        raise NotImplementedError
