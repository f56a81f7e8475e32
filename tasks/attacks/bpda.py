"""Gradients through what has none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.draws import Draws
from tasks.component import kind_of
from tasks.models.modules import modules_called


class BPDA(Attack):
    """Another attack that takes the identity for the derivative of given modules (Athalye et al. 2018, section 4.1).

    Forward, the network computes what it always does. Backward, gradients pass straight through the modules that round,
    clamp or otherwise hide them; their outputs must have the shape of their inputs.
    """

    kind: Literal["bpda"] = "bpda"
    attack: Attack
    """What attacks, by gradients of the network; its norm must be given here too."""
    through: tuple[str, ...] = Field(min_length=1)
    """Names of modules, as `named_modules` lists them, or the last parts of these names."""

    @model_validator(mode="after")
    def _share_one_norm(self) -> Self:
        if self.attack.norm != self.norm:
            raise ValueError(f"norm is {self.norm}, but that of the attack inside is {self.attack.norm}")
        return self

    @model_validator(mode="after")
    def _follows_gradients(self) -> Self:
        if not self.attack.gradients:
            raise ValueError(
                f"{kind_of(type(self.attack))} follows no gradients of the network: give it without `bpda`"
            )
        return self

    def label(self) -> str:
        """With the name of the attack inside."""
        return f"bpda-{self.attack.label()}"

    def parts(self) -> tuple[Attack, ...]:
        """One for each part of the attack inside; a part that follows no gradients as it is."""
        return tuple(
            self.model_copy(update={"attack": part}) if part.gradients else part for part in self.attack.parts()
        )

    def check_model(self, model: nn.Module) -> None:
        """Looks up the modules.

        Raises:
            ValueError: the network has no module of such a name, or the attack inside cannot attack it.
        """
        modules_called(self.through, model, "through")
        self.attack.check_model(model)

    def fallbacks(self, classes: int) -> Iterator[str]:
        """Those of the attack inside."""
        yield from self.attack.fallbacks(classes)

    def search(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        """What the attack inside finds.

        Raises:
            ValueError: the network has no module of such a name.
        """
        with straight_through(model, self.through):
            return self.attack.search(model, images, labels, epsilon, draws)


@contextmanager
def straight_through(model: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """Gradients pass unchanged through some modules for a while.

    Args:
        model: any.
        names: of its modules, or the last parts of their names.

    Raises:
        ValueError: the network has no module of such a name, or a module changes its input in place, or its shape.
    """
    with ExitStack() as hooks:
        for module in modules_called(names, model, "through").values():
            hooks.callback(module.register_forward_hook(_as_identity).remove)
        yield


def _as_identity(module: nn.Module, given: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    if output is given[0]:
        raise ValueError("through: a module changes its input in place, and its gradient with it; build it otherwise")
    if output.shape != given[0].shape:
        raise ValueError(
            f"through: a module turns {tuple(given[0].shape)} into {tuple(output.shape)}; shapes must agree"
        )
    straight: torch.Tensor = _StraightThrough.apply(given[0], output)
    return straight


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, images: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return output.clone()

    @staticmethod
    def backward(context: Any, *gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient[0], None
