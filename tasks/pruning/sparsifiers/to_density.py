"""What sparsifiers share that aim at a density."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from tasks.models.prunable import output_layer, prunable
from tasks.pruning.mask import Mask
from tasks.pruning.prune import Prune, Quotas
from tasks.pruning.sparsifiers import Sparsifier


class ToDensity(Sparsifier):
    """A sparsifier that aims at a density, shared out over the layers as a `Prune` would."""

    density: float = Field(gt=0, lt=1)
    """Share of all prunable weights, the output layer's included, that is kept in the end."""
    scope: Literal["global", "layerwise", "uniform", "erk"] = "global"
    """Rank all kernels together; or remove the same share of what every layer has left; or leave every layer the same
    density; or the densities of the Erdős-Rényi kernel, higher in small layers (Evci et al. 2020)."""
    output_layer: Literal["include", "exclude"] = "include"
    """Rank the output layer with the others, or spare it."""

    def check(self, model: nn.Module) -> None:
        """Counts what every layer keeps."""
        self.aim(model, None)

    def aim(self, model: nn.Module, mask: Mask | None) -> Aim:
        """What this means for a network.

        Args:
            model: as training begins.
            mask: what training begins under; None if the network is dense.

        Raises:
            ValueError: it has fewer weights left than it should keep, or the spared layer leaves none to the rest.
        """
        kernels = prunable(model)
        within = Mask.ones_like(kernels) if mask is None else mask
        shapes = {name: kernel.shape for name, kernel in kernels.items()}
        pruning = Prune(density=self.density, scope=self.scope, output_layer=self.output_layer)
        return Aim(within, pruning.quotas(shapes, within.layer_nnz, output_layer(model)))


class Aim(nn.Module):
    """How many weights a network is to keep where; follows from what training begins with, so no checkpoint has it.

    A memory that has more to remember adds it as buffers.

    Args:
        within: what training begins under.
        quotas: kernels that are ranked together, and how many weights they keep.
    """

    def __init__(self, within: Mask, quotas: Quotas) -> None:
        super().__init__()
        self.within = within
        self.quotas = quotas

    @property
    def ranked(self) -> list[str]:
        """The kernels that have to compete, in alphabetical order."""
        return sorted(name for names, _ in self.quotas for name in names)

    def drawn(self, scores: Mapping[str, torch.Tensor]) -> Mask:
        """The mask of the highest scores, exactly as many as there should be.

        Raises:
            ValueError: a score is not finite.
        """
        return top(self.within, scores, self.quotas)


def top(mask: Mask, scores: Mapping[str, torch.Tensor], quotas: Quotas) -> Mask:
    """The mask that keeps so many of the kept weights of each group of kernels, those of the highest scores.

    Args:
        mask: what is kept; kernels in no group stay as they are.
        scores: by kernel; ties go to the earlier position.
        quotas: kernels that are ranked together, and how many weights they keep.

    Raises:
        ValueError: a score is not finite, or a group has fewer weights left.
    """
    kept = dict(mask)
    for names, stay in quotas:
        candidates = Mask({name: mask[name] for name in names})
        kept.update(candidates.top({name: scores[name] for name in names}, stay))
    return Mask(kept)


class PerKernel(nn.Module):
    """A tensor for every kernel, as buffers: a module's own names may not contain dots.

    Args:
        tensors: by the kernel's name.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name.replace(".", "/"), tensor)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.get_buffer(name.replace(".", "/"))
