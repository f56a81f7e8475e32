"""What objectives that attack the model share."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional as F

from tasks.attacks.ascent import ascend, cross_entropy_gradient, evaluating
from tasks.attacks.ball import Norm, ball, require_radius, unit
from tasks.budgets import Budget
from tasks.budgets.fixed import Fixed
from tasks.component import kind_of
from tasks.data import Signature
from tasks.moment import Moment
from tasks.objectives import Objective

START_NOISE = 1e-3
"""Standard deviation of the noise of a start next to the image."""


class Attacked(NamedTuple):
    """What is minimised, and how the model answered the attack."""

    loss: torch.Tensor
    """A scalar with a graph."""
    logits: torch.Tensor
    """(N, K) of the perturbed images."""


class Adversarial(Objective):
    """An objective in two parts: an attack that perturbs the images, and a loss on what it found."""

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    """The norms in which its attack moves."""

    epsilon: float = Field(gt=0)
    """Largest radius of the attack, in input units."""
    norm: Literal["linf", "l2"] = "linf"
    """Norm of the ball."""
    budget: Budget = Fixed()
    """How much of the radius is spent when, and on which images."""

    @property
    def threat(self) -> tuple[Norm, float]:
        """Norm and radius."""
        return self.norm, self.epsilon

    @property
    def grows(self) -> bool:
        """As its budget does."""
        return self.budget.grows

    def against(self, epsilon: float) -> Self:
        """The same with another `epsilon`.

        Raises:
            ValueError: there is no such radius.
        """
        return type(self).model_validate({**dict(self), "epsilon": epsilon})

    def memory(self, data: Signature, examples: int, batch: int) -> nn.Module:
        """That of the budget, as `budget`."""
        memory = nn.Module()
        memory.add_module("budget", self.budget.memory(examples))
        return memory

    def loss(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, moment: Moment) -> torch.Tensor:
        """What `outer` makes of the images that `perturb` found."""
        return self.attacked(model, images, labels, moment).loss

    def attacked(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, moment: Moment) -> Attacked:
        """The loss, and how the model answered the attack, which the budget is told of."""
        perturbed = self.perturb(model, images, labels, self.radii(images, moment), moment)
        found = self.outer(model, images, perturbed, labels, moment)
        self.learn(found.logits, labels, moment)
        return found

    def attack_passes(self) -> int:
        """Of `passes`, those of `perturb`."""
        return 1

    def outer_passes(self) -> int:
        """What `outer` takes when it is called by itself."""
        return self.passes() - self.attack_passes()

    def perturb(
        self,
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        epsilon: float | torch.Tensor,
        moment: Moment,
    ) -> torch.Tensor:
        """The inner maximum: images (N, C, H, W) within `epsilon`, one radius or (N,), of these, detached."""
        raise NotImplementedError

    def outer(
        self,
        model: nn.Module,
        images: torch.Tensor,
        perturbed: torch.Tensor,
        labels: torch.Tensor,
        moment: Moment,
    ) -> Attacked:
        """The outer minimum: the loss on images (N, C, H, W) and their perturbed twins, in training mode.

        The mean cross-entropy on the perturbed images, unless a member says otherwise.
        """
        logits = model(perturbed)
        return Attacked(F.cross_entropy(logits, labels), logits)

    def radii(self, images: torch.Tensor, moment: Moment) -> float | torch.Tensor:
        """What the budget grants these images."""
        return self.budget.radii(self.epsilon, len(images), moment, _of_budget(moment))

    def learn(self, logits: torch.Tensor, labels: torch.Tensor, moment: Moment) -> None:
        """Tells the budget how the model answered the attack."""
        self.budget.learn(logits.detach(), labels, moment, _of_budget(moment))

    @model_validator(mode="after")
    def _stay_in_range(self) -> Self:
        require_radius(self.norm, self.epsilon)
        return self

    @model_validator(mode="after")
    def _norm_is_offered(self) -> Self:
        if self.norm not in self.norms:
            raise ValueError(f"{kind_of(type(self))} attacks in norm {' or '.join(self.norms)}, not {self.norm}")
        return self


class Iterated(Adversarial):
    """An adversarial objective whose attack takes several steps."""

    steps: int = Field(default=10, ge=1)
    """Steps of the inner attack."""
    relative_step: float | None = Field(default=None, gt=0)
    """Length of a step as a share of the radius; `2.5 / steps` unless given, the rule of Madry et al. 2018."""

    def step(self, epsilon: float | torch.Tensor) -> float | torch.Tensor:
        """Length of a step in input units: a number, or (N, 1, 1, 1)."""
        length: float | torch.Tensor = per_image(epsilon) * (self.relative_step or 2.5 / self.steps)
        return length

    def attack_passes(self) -> int:
        """One for each step."""
        return self.steps

    def perturb(
        self,
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        epsilon: float | torch.Tensor,
        moment: Moment,
    ) -> torch.Tensor:
        """The last iterate of an ascent on the cross-entropy from a random start, unless a member says otherwise."""
        return self.ascent(model, images, labels, epsilon, self.random_start(images, epsilon, moment.generator))

    def ascent(
        self,
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        epsilon: float | torch.Tensor,
        start: torch.Tensor,
    ) -> torch.Tensor:
        """The last iterate of an ascent on the cross-entropy in the balls around `images`; overwrites `start`."""
        with evaluating(model):
            gradient_of = cross_entropy_gradient(model, labels)
            return ascend(gradient_of, start, ball(self.norm, images, epsilon), self.step(epsilon), self.steps)

    def random_start(
        self, images: torch.Tensor, epsilon: float | torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """A point of every ball, drawn evenly and then cut to [0, 1]: (N, C, H, W)."""
        if self.norm == "linf":
            noise = random_change(images, epsilon, generator)
            return ball("linf", images, epsilon).project_(noise.add_(images))
        direction = unit(torch.empty_like(images).normal_(generator=generator))
        lengths = images.new_empty(len(images), 1, 1, 1).uniform_(generator=generator) ** (1 / images[0].numel())
        return direction.mul_(per_image(epsilon) * lengths).add_(images).clamp_(0, 1)


def beside(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A start of attacks next to images (N, C, H, W), where losses that are flat at the images have a gradient."""
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return (images + START_NOISE * noise).clamp_(0, 1)


def random_change(images: torch.Tensor, epsilon: float | torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A change of each pixel of images (N, C, H, W), even in [-epsilon, epsilon]."""
    change = torch.empty_like(images)
    if isinstance(epsilon, torch.Tensor):
        return change.uniform_(-1, 1, generator=generator).mul_(epsilon.view(-1, 1, 1, 1))
    return change.uniform_(-epsilon, epsilon, generator=generator)


def per_image(epsilon: float | torch.Tensor) -> Any:
    """A radius for all images as it is, those of each as (N, 1, 1, 1)."""
    return epsilon.view(-1, 1, 1, 1) if isinstance(epsilon, torch.Tensor) else epsilon


def _of_budget(moment: Moment) -> nn.Module:
    """Its part of the memory; an objective outside a training has none."""
    return getattr(moment.memory, "budget", moment.memory)
