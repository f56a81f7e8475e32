"""Attacks: small changes to images that make a model fail."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Self

import torch
from pydantic import model_validator
from torch import nn

from tasks.attacks.ball import Norm
from tasks.attacks.draws import Draws
from tasks.component import Component, kind_of


class Attack(Component):
    """A way to perturb images within a ball."""

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    """The norms in which it can attack."""
    gradients: ClassVar[bool] = True
    """Whether it follows the network's own gradients: if not, it should win only where these are masked."""

    norm: Norm = "linf"
    """Norm of the ball: the largest change of a value, or the change's Euclidean length, sum of absolute values, or
    number of changed values."""

    def perturb(
        self,
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        epsilon: float | torch.Tensor,
        draws: Draws,
    ) -> torch.Tensor:
        """Adversarial images within `epsilon` of `images` and in [0, 1], detached, in their shape and order.

        An image that no tried perturbation breaks comes back as its strongest attempt. The model's mode, the images and
        the global generator are left as they were.

        Args:
            model: in evaluation mode, images to logits.
            images: (N, C, H, W) in [0, 1].
            labels: (N,) int64, the true classes.
            epsilon: radius in input units, one for all or (N,) float32.
            draws: the only source of randomness: N examples.

        Raises:
            ValueError: an argument is not as described.
        """
        radii = _radii(epsilon, images)
        _check(images, labels, radii, draws)
        images = images.detach()
        return self.search(model, images, labels, radii, draws) if len(images) else images.clone()

    def search(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        """What a member does in `perturb`, on arguments that are as described: N at least 1, `epsilon` (N,)."""
        raise NotImplementedError

    def parts(self) -> tuple[Attack, ...]:
        """The attacks that this one runs one after the other, each on what the ones before it left; itself if one."""
        return (self,)

    def label(self) -> str:
        """A short name that tells it from its siblings."""
        return kind_of(type(self))

    def check_model(self, model: nn.Module) -> None:
        """Finds, without its weights, whether it can attack this network; nothing is computed.

        Raises:
            ValueError: it cannot; says why.
        """

    def fallbacks(self, classes: int) -> Iterator[str]:
        """What it does differently on data with so few classes, in words."""
        yield from ()

    @model_validator(mode="after")
    def _norm_is_offered(self) -> Self:
        if self.norm not in self.norms:
            offered = " or ".join(self.norms)
            raise ValueError(f"{kind_of(type(self))} attacks in norm {offered}, not {self.norm}")
        return self


def parts_of(attacks: Iterable[Attack]) -> tuple[Attack, ...]:
    """The attacks one by one, those that consist of several taken apart."""
    return tuple(part for attack in attacks for part in attack.parts())


def _radii(epsilon: float | torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    if isinstance(epsilon, torch.Tensor):
        return epsilon
    return torch.full((len(images),), epsilon, device=images.device)


def _check(images: torch.Tensor, labels: torch.Tensor, radii: torch.Tensor, draws: Draws) -> None:
    def refuse(what: str, found: Any) -> None:
        raise ValueError(f"{what}, found {found}")

    if images.ndim != 4 or not images.is_floating_point():
        refuse("images must be (N, C, H, W) floats", f"{tuple(images.shape)} {images.dtype}")
    if not len(labels) == len(radii) == len(draws) == len(images):
        refuse(f"labels, epsilon and draws must be {len(images)}", (len(labels), len(radii), len(draws)))
    if not len(images):
        return
    low, high = images.amin().item(), images.amax().item()
    if not 0 <= low <= high <= 1:
        refuse("images must lie in [0, 1]", f"values from {low:g} to {high:g}")
    if (lowest := int(labels.amin())) < 0:
        refuse("labels must be classes from 0 up", lowest)
    if not (radii >= 0).all() or radii.isinf().any():
        refuse("epsilon must be a finite number, 0 or larger", radii[~(radii >= 0) | radii.isinf()][0].item())
