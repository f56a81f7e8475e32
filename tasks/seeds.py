"""Random generators that depend on what they are for, never on who asks or when."""

from __future__ import annotations

import hashlib

import torch


def seed_of(*purpose: int | str) -> int:
    """A 63-bit seed from a purpose such as `(seed, "order", epoch)`; equal purposes give equal seeds everywhere."""
    digest = hashlib.sha256("/".join(map(str, purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*purpose: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A private generator for this purpose; the global one stays untouched."""
    return torch.Generator(device).manual_seed(seed_of(*purpose))
