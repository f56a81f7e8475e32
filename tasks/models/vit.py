"""A small vision transformer whose every projection is a plain linear layer, so that all of them can be pruned."""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from tasks.data import Signature
from tasks.models import Architecture
from tasks.models.network import Network

EPSILON = 1e-6
"""Of the layer norms."""


class _Attention(nn.Module):
    """Self-attention over T tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project_in = nn.Linear(dim, 3 * dim)
        self.project_out = nn.Linear(dim, dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N, T, dim) to (N, T, dim)."""
        split = self.project_in(tokens).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each (N, heads, T, dim / heads)
        # Not the fused kernel: it has no second derivative, and its backward pass on a GPU is not reproducible.
        weights = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(dim=-1)
        mixed: torch.Tensor = self.project_out((weights @ value).transpose(1, 2).flatten(2))
        return mixed


class _Block(nn.Module):
    """Pre-norm attention and a two-layer perceptron, each beside a shortcut."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPSILON)
        self.attention = _Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=EPSILON)
        self.hidden = nn.Linear(dim, 4 * dim)
        self.project = nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N, T, dim) to (N, T, dim)."""
        tokens = tokens + self.dropout(self.attention(self.norm1(tokens)))
        inner = self.project(self.dropout(F.gelu(self.hidden(self.norm2(tokens)))))
        outcome: torch.Tensor = tokens + self.dropout(inner)
        return outcome


class _Transformer(nn.Module):
    """Patches and a class token through the blocks; the class token yields the logits."""

    def __init__(self, config: ViT, data: Signature) -> None:
        super().__init__()
        patches = (data.height // config.patch) * (data.width // config.patch)
        self.token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.embed = nn.Conv2d(data.channels, config.dim, config.patch, stride=config.patch)
        self.positions = nn.Parameter(torch.empty(1, patches + 1, config.dim).normal_(std=0.02))
        self.blocks = nn.Sequential(*(_Block(config.dim, config.heads, config.dropout) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.dim, eps=EPSILON)
        self.output = nn.Linear(config.dim, data.classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to logits (N, classes)."""
        patches = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), patches], dim=1) + self.positions
        logits: torch.Tensor = self.output(self.norm(self.blocks(tokens))[:, 0])
        return logits


class ViT(Architecture):
    """Vision transformer, small by default (Dosovitskiy et al. 2021)."""

    kind: Literal["vit"] = "vit"
    patch: int = Field(default=4, ge=1)
    """Pixels along the side of a patch; it divides the height and the width of the images."""
    dim: int = Field(default=192, ge=1)
    """Size of a token; the perceptrons have four times as many hidden units."""
    depth: int = Field(default=6, ge=1)
    """Blocks."""
    heads: int = Field(default=3, ge=1)
    """Attention heads; they divide `dim`."""
    dropout: float = Field(default=0, ge=0, lt=1)
    """Share of activations dropped in the blocks."""

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        return self

    def build(self, data: Signature) -> nn.Module:
        """The network for these images; projections are drawn from a normal of deviation 0.02.

        Raises:
            ValueError: the patches do not tile the images.
        """
        if data.height % self.patch or data.width % self.patch:
            shape = f"{data.channels}x{data.height}x{data.width}"
            raise ValueError(
                f"vit needs height and width divisible by its patch of {self.patch}, the images are {shape}"
            )
        body = _Transformer(self, data)
        for layer in body.blocks.modules():
            if isinstance(layer, nn.Linear):
                # Not `trunc_normal_`: its cut at 100 deviations changes nothing, and its draws differ between versions.
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        return Network(data, body, body.output)
