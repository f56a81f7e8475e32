"""Training at the worst weights nearby."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.func import functional_call

from tasks.attacks.ball import unit
from tasks.component import kind_of
from tasks.moment import Moment
from tasks.objectives import Objective
from tasks.objectives.adversarial import Adversarial
from tasks.objectives.around import Around

COMPILED = "_orig_mod."
"""What `torch.compile` puts in front of the names of parameters."""


class AWP(Around):
    """Adversarial weight perturbation: the loss on attacked images at weights attacked as well (Wu et al. 2020).

    Once the images are perturbed, every kernel `w` moves up the gradient `g` of the outer loss, by `gamma` of its own
    length: `w + gamma * |w| * g / |g|`. Loss and gradient are taken there, and the gradient is that of `w`, which
    itself never changes. As in the authors' code, kernels are the weights with more than one dimension; biases and
    norms stay, and statistics of batches are those of the second pass alone.

    Under a mask the direction is masked before its length is taken: pruned weights are zero at the perturbed weights
    too, and the step is as long as it is meant to be.

    The authors' proxy network has a learning rate; since one plain step of it is scaled to the length above, that
    changes nothing, and there is none here.
    """

    kind: Literal["awp"] = "awp"
    objective: Objective
    """What attacks the images, and the loss: an adversarial objective."""
    gamma: float = Field(default=0.01, ge=0, lt=1)
    """Length of the step as a share of each kernel's; the authors take 0.01, and 0.005 around `trades`."""
    warmup: float = Field(default=0, ge=0, lt=1)
    """Share of the training that comes first, without it.

    Small networks without batch norm may need it: on MNIST digits one that began with `gamma` 0.01 never left a single
    class, and with a warm-up of 0.3, or with 0.005 from the beginning, it learned.
    """

    @model_validator(mode="after")
    def _attacks_before_the_loss(self) -> Self:
        inside = self.objective
        if not isinstance(inside, Adversarial) or inside.passes() < 2 or inside.replays > 1:
            kind = kind_of(type(inside))
            raise ValueError(
                f"awp is put around an objective that attacks images and then takes the loss; {kind} does not"
            )
        return self

    @property
    def moves_weights(self) -> bool:
        """It does."""
        return True

    def passes(self) -> int:
        """Those of the objective inside, its loss taken twice; the warm-up is not told apart."""
        inside = self.objective
        assert isinstance(inside, Adversarial)  # by validation
        return inside.attack_passes() + 2 * inside.outer_passes() if self.gamma else inside.passes()

    def loss(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, moment: Moment) -> torch.Tensor:
        """The outer loss at the perturbed weights; the budget learns how the weights as they are answer the attack."""
        objective = self.objective
        assert isinstance(objective, Adversarial)  # by validation
        if not self.gamma or moment.progress < self.warmup:
            return objective.loss(model, images, labels, moment)
        perturbed = objective.perturb(model, images, labels, objective.radii(images, moment), moment)
        # Neither the gradient nor the statistics of the first pass are the model's: it sees copies of both.
        kernels = {name: weight.detach().requires_grad_() for name, weight in _kernels(model).items()}
        statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
        drawn = moment.generator.get_state()
        found = objective.outer(_At(model, kernels | statistics), images, perturbed, labels, moment)
        objective.learn(found.logits, labels, moment)
        # Summed over examples, so that half precision does not lose it in a large batch: only its direction counts.
        gradients = torch.autograd.grad(found.loss * len(images), list(kernels.values()), materialize_grads=True)
        moved = self._moved(model, moment.summed(gradients), moment)
        moment.generator.set_state(drawn)  # what the loss draws is the same in both passes
        return objective.outer(_At(model, moved), images, perturbed, labels, moment).loss

    def _moved(self, model: nn.Module, gradients: Sequence[torch.Tensor], moment: Moment) -> dict[str, torch.Tensor]:
        """The kernels by name, a step up their gradients; what is computed with them has gradients for the model's."""
        moved = {}
        for (name, weight), gradient in zip(_kernels(model).items(), gradients, strict=True):
            kept = moment.kept.get(name.removeprefix(COMPILED))
            uphill = gradient if kept is None else gradient * kept
            direction = unit(uphill.reshape(1, 1, 1, -1)).view(weight.shape)
            moved[name] = weight + self.gamma * weight.detach().norm() * direction
        return moved


def _kernels(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is moved: the weights of more than one dimension that are trained."""
    return {
        name: weight
        for name, weight in model.named_parameters()
        if weight.dim() > 1 and "weight" in name and weight.requires_grad
    }


class _At(nn.Module):
    """A model at other weights or statistics than its own, which stay as they are.

    Args:
        model: in training mode, with its frozen modules.
        tensors: parameters and buffers by name, in place of its own; running statistics among them are moved.
    """

    def __init__(self, model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.model = model
        self.tensors = tensors

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """What the model makes of these images there."""
        logits: torch.Tensor = functional_call(self.model, self.tensors, (images,))
        return logits
