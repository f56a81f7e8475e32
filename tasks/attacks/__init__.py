"""Attacks: small changes to images that make a model fail."""

from __future__ import annotations

import torch
from torch import nn

from tasks.attacks.ball import Norm
from tasks.component import Component


class Attack(Component):
    """A way to perturb images within a ball."""

    norm: Norm = "linf"
    """Norm of the ball: the largest change of a pixel, or the Euclidean length of the change."""

    def perturb(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: float, generator: torch.Generator
    ) -> torch.Tensor:
        """Adversarial images within `epsilon` of `images` and in [0, 1], detached, in their shape and order.

        An image that no tried perturbation breaks comes back as its strongest attempt. The model's mode and the global
        generator are left as they were.

        Args:
            model: in evaluation mode, images to logits.
            images: (N, C, H, W) in [0, 1].
            labels: (N,) int64, the true classes.
            epsilon: radius in input units.
            generator: the only source of randomness, on the device of the images.
        """
        raise NotImplementedError
