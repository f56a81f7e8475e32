"""The mask: which weights of a network are kept, and the only place that says so."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import save
from torch import nn, optim

from tasks.models.prunable import prunable
from tasks.models.weights import load_tensors
from tasks.seeds import generator

WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers as wide as a float, by bytes."""


class Mask(Mapping[str, torch.Tensor]):
    """An immutable choice of weights: kernel name -> bool tensor in the kernel's shape, true where it is kept.

    Names iterate in alphabetical order; masks are equal when they keep the same positions of the same kernels. A mask
    is always built from a decision and never read off zeros in the weights: a kept weight may well be zero.
    """

    def __init__(self, kept: Mapping[str, torch.Tensor]) -> None:
        for name, layer in kept.items():
            if layer.dtype != torch.bool:
                raise ValueError(
                    f"mask of '{name}' is {layer.dtype}, not bool: kept positions are chosen, never inferred"
                )
        # Contiguous copies: a caller that still holds the tensors cannot change the mask.
        self._kept = {
            name: kept[name].detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name in sorted(kept)
        }

    @classmethod
    def ones_like(cls, weights: Mapping[str, torch.Tensor]) -> Self:
        """The mask that keeps everything."""
        return cls({name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()})

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Reads what `to_bytes` wrote.

        Raises:
            ValueError: the bytes are not safetensors of bools.
        """
        return cls(load_tensors(content))

    def to_bytes(self) -> bytes:
        """Safetensors with one bool tensor a kernel, readable without this package; equal masks give equal bytes."""
        return save(self._kept)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._kept[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Mask({self.nnz} of {self.total} kept, {self.digest[:12]})"

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, shapes and kept positions."""
        content = hashlib.sha256()
        for name, layer in self._kept.items():
            content.update(f"{name}{tuple(layer.shape)}".encode())
            content.update(np.packbits(layer.numpy()).tobytes())
        return content.hexdigest()

    @cached_property
    def nnz(self) -> int:
        """How many weights are kept."""
        return sum(self.layer_nnz.values())

    @cached_property
    def total(self) -> int:
        """How many weights there are, kept or not."""
        return sum(layer.numel() for layer in self._kept.values())

    @property
    def density(self) -> float:
        """Share of the weights that is kept."""
        return self.nnz / self.total

    @cached_property
    def layer_nnz(self) -> dict[str, int]:
        """How many weights each kernel keeps."""
        return {name: int(layer.sum()) for name, layer in self._kept.items()}

    @property
    def layer_densities(self) -> dict[str, float]:
        """Share of each kernel that is kept."""
        return {name: kept / self._kept[name].numel() for name, kept in self.layer_nnz.items()}

    def summary(self) -> dict[str, Any]:
        """What a task reports of a mask: density, counts, density by layer and the digest."""
        return {
            "density": self.density,
            "kept": self.nnz,
            "total": self.total,
            "layers": self.layer_densities,
            "digest": self.digest,
        }

    def __and__(self, other: Mask) -> Mask:
        self.require_fit(other._kept)
        return Mask({name: layer & other._kept[name] for name, layer in self._kept.items()})

    def __or__(self, other: Mask) -> Mask:
        self.require_fit(other._kept)
        return Mask({name: layer | other._kept[name] for name, layer in self._kept.items()})

    def iou(self, other: Mask) -> float:
        """Kept by both over kept by either, in [0, 1]; two empty masks agree, 1."""
        either = (self | other).nnz
        return (self & other).nnz / either if either else 1.0

    def nested_in(self, other: Mask) -> bool:
        """Whether `other` keeps all that this mask keeps."""
        return (self & other).nnz == self.nnz

    def top(self, scores: Mapping[str, torch.Tensor], keep: int) -> Mask:
        """The `keep` kept positions with the highest scores: exactly that many, all of them within this mask.

        Among equal scores the earlier position stays: kernels in alphabetical order, then row by row.

        Args:
            scores: a score for every position; those of pruned positions are ignored.
            keep: how many to keep, over all kernels together.

        Raises:
            ValueError: a kept position's score is NaN or infinite, `keep` is more than there are, or shapes differ.
        """
        self.require_fit(scores)
        if not 0 <= keep <= self.nnz:
            raise ValueError(f"cannot keep {keep} of {self.nnz} weights")
        ranked = []
        for name, layer in self._kept.items():
            candidates = scores[name].detach().cpu()[layer].double()
            if not candidates.isfinite().all():
                raise ValueError(f"a score in '{name}' is NaN or infinite: has training diverged?")
            ranked.append(candidates)
        chosen = highest(torch.cat(ranked), keep)
        kept = {}
        for (name, layer), part in zip(
            self._kept.items(), torch.split(chosen, [len(part) for part in ranked]), strict=True
        ):
            kept[name] = torch.zeros_like(layer).masked_scatter_(layer, part)
        return Mask(kept)

    def scattered(self, seed: int) -> Mask:
        """As many kept in the whole network, at positions drawn uniformly from all of it."""
        order = torch.randperm(self.total, generator=generator(seed, "scatter"))
        flat = torch.cat([layer.flatten() for layer in self._kept.values()])[order]
        parts = torch.split(flat, [layer.numel() for layer in self._kept.values()])
        return Mask(
            {name: part.view(layer.shape) for (name, layer), part in zip(self._kept.items(), parts, strict=True)}
        )

    def shuffled(self, seed: int) -> Mask:
        """As many kept in every kernel, at positions drawn uniformly: each kernel is permuted within itself."""
        kept = {}
        for name, layer in self._kept.items():
            order = torch.randperm(layer.numel(), generator=generator(seed, "shuffle", name))
            kept[name] = layer.flatten()[order].view(layer.shape)
        return Mask(kept)

    def apply_(self, model: nn.Module) -> None:
        """Sets the pruned weights of a model to zero, in place.

        Raises:
            ValueError: the model's prunable kernels are not those of the mask.
        """
        weights = prunable(model)
        self.require_fit(weights)
        for name, layer in self._kept.items():
            weight = weights[name].detach()
            weight.masked_fill_(~layer.to(weight.device), 0)

    def enforce_(self, model: nn.Module, optimizer: optim.Optimizer) -> None:
        """Zeroes pruned weights and their optimizer slots once; `Enforcer` does so again and again."""
        Enforcer(self, model, optimizer)()

    def audit(self, model: nn.Module) -> None:
        """Checks that every pruned weight of a model is zero.

        Raises:
            ValueError: one is not, NaN included; or the kernels are not those of the mask.
        """
        self.audit_weights(prunable(model))

    def audit_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """`audit` for kernels by name."""
        self.require_fit(weights)
        for name, layer in self._kept.items():
            weight = weights[name].detach()
            alive = int((weight[~layer.to(weight.device)] != 0).sum())  # NaN != 0
            if alive:
                raise ValueError(f"{alive} pruned weights of '{name}' are not zero: the mask was not enforced")

    def require_fit(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Checks that these tensors have the mask's names and shapes.

        Raises:
            ValueError: they have not; names the first difference.
        """
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        for name in sorted({*self._kept, *shapes}):
            if name not in self._kept:
                raise ValueError(f"the mask does not fit: it has no '{name}'")
            if name not in shapes:
                raise ValueError(f"the mask does not fit: it has '{name}', which is not among the prunable weights")
            if shapes[name] != (masked := tuple(self._kept[name].shape)):
                raise ValueError(
                    f"the mask does not fit: '{name}' is {masked} in the mask and {shapes[name]} in the weights"
                )


class Enforcer:
    """Keeps pruned weights dead during training: call it after every optimizer step.

    Zeroes pruned weights and the same positions of every optimizer slot in the weight's shape (momentum, first and
    second moments), or momentum would revive them at the next step. Clearing bits is as fast as multiplying by a 0/1
    mask, and leaves +0.0 where a product would leave NaN, or -0.0.

    Raises:
        ValueError: the model's prunable kernels are not those of the mask.
    """

    def __init__(self, mask: Mask, model: nn.Module, optimizer: optim.Optimizer) -> None:
        self._model = model
        self._optimizer = optimizer
        self.renew(mask)

    def renew(self, mask: Mask) -> None:
        """From now on keeps another mask.

        Raises:
            ValueError: the model's prunable kernels are not those of the mask.
        """
        weights = prunable(self._model)
        mask.require_fit(weights)
        self.kept = {name: mask[name].to(weights[name].device) for name in mask}
        """The mask by parameter name, on the device of the weights."""
        self._weights = [(weights[name], mask[name]) for name in mask]
        self._bits: dict[tuple[int, torch.dtype], torch.Tensor] = {}

    def __call__(self) -> None:
        """Zeroes weights and slots in place."""
        for place, (weight, kept) in enumerate(self._weights):
            for slot in (weight.detach(), *self._optimizer.state.get(weight, {}).values()):
                if isinstance(slot, torch.Tensor) and slot.shape == weight.shape:
                    bits = self._bits.get((place, slot.dtype))
                    if bits is None:
                        bits = self._bits[place, slot.dtype] = _bits(kept, slot)
                    slot.view(bits.dtype).bitwise_and_(bits)


def _bits(kept: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """All bits set where kept and none elsewhere, with the device and the strides of `like`."""
    word = WORDS[like.element_size()]
    return torch.zeros_like(like, dtype=word).masked_fill_(kept.to(like.device), -1)


def highest(scores: torch.Tensor, keep: int) -> torch.Tensor:
    """A bool tensor (N,) with the `keep` highest of the scores (N,); the earlier of equals first."""
    if keep == 0:
        return torch.zeros(len(scores), dtype=torch.bool)
    threshold = scores.topk(keep, sorted=False).values.min()  # `kthvalue` warns on a GPU, of indices that nobody reads
    chosen = scores > threshold
    ties = (scores == threshold).nonzero().flatten()
    chosen[ties[: keep - int(chosen.sum())]] = True
    return chosen
