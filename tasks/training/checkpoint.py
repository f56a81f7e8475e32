"""What a running training keeps, so that another process goes on from the very same bits.

No generator is among it: whatever a step draws comes from its number (see `tasks.training.loop`).
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn, optim

FORMAT = 2
"""Rises when `unpack` can no longer read what an older `pack` wrote."""


@dataclass(frozen=True)
class Best:
    """The best network so far by validation accuracy."""

    accuracy: float
    loss: float
    step: int
    epoch: int
    weights: bytes
    """As `tasks.models.weights.weights_to_bytes` writes them."""


@dataclass
class Progress:
    """How far a training is, and what it has seen."""

    step: int
    """Steps taken, counted over the whole schedule: a rewound training starts above zero."""
    losses: list[torch.Tensor] = field(default_factory=list)
    """The batch losses, scalars, since the last entry of the history."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry per epoch."""
    best: Best | None = None


def pack(
    progress: Progress,
    model: nn.Module,
    optimizer: optim.Optimizer,
    scaler: torch.amp.GradScaler,
    memory: nn.Module,
) -> bytes:
    """The whole state of a training between two steps; `memory` is the objective's."""
    best = progress.best
    state = {
        "format": FORMAT,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "memory": memory.state_dict(),
        "step": progress.step,
        "losses": torch.stack(progress.losses).cpu() if progress.losses else torch.empty(0),
        "history": progress.history,
        # A tensor, because pickle would keep the bytes as text half as large again.
        "best": best and {**vars(best), "weights": torch.frombuffer(bytearray(best.weights), dtype=torch.uint8)},
    }
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


def unpack(
    content: bytes,
    model: nn.Module,
    optimizer: optim.Optimizer,
    scaler: torch.amp.GradScaler,
    memory: nn.Module,
) -> Progress:
    """Puts a saved state into model, optimizer, scaler and memory, in place, and returns the progress.

    Raises:
        ValueError: another version of hedgerow saved it.
    """
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if state["format"] != FORMAT:
        raise ValueError(
            f"the saved training state has format {state['format']}, this hedgerow reads format {FORMAT}: "
            "finish the step with the version that began it"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    memory.load_state_dict(state["memory"])
    best = state["best"] and Best(**{**state["best"], "weights": state["best"]["weights"].numpy().tobytes()})
    device = next(model.parameters()).device
    return Progress(state["step"], list(state["losses"].to(device)), state["history"], best)
