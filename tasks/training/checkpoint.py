"""What a running training keeps, so that another process goes on from the very same bits.

No generator is among it: whatever a step draws comes from its number (see `tasks.training.loop`).
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn, optim

from tasks.pruning.mask import Mask

STATE = "progress.state"
"""The file of a rewind point that holds the state which longer trainings may go on from."""
FORMAT = 4
"""Rises when `unpack` can no longer read what an older `pack` wrote."""


class Stale(ValueError):
    """What a shorter training left cannot be read; no work of the longer one is lost with it."""


@dataclass(frozen=True)
class Best:
    """The best network so far by validation accuracy, by the robust one where that is measured."""

    accuracy: float
    loss: float
    robust_accuracy: float | None
    step: int
    epoch: int
    weights: bytes
    """As `tasks.models.weights.weights_to_bytes` writes them."""

    @property
    def rank(self) -> float:
        """What it is the best by."""
        return self.accuracy if self.robust_accuracy is None else self.robust_accuracy


@dataclass(frozen=True)
class Good:
    """What a guard goes back to."""

    accuracy: float
    """Under its attack."""
    step: int
    weights: bytes
    best: Best | None
    """The best network by validation when the guard looked."""


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
    good: Good | None = None
    selection_steps: int = 0
    """Images that went through the network to find what it withstands."""
    stopped: dict[str, Any] | None = None
    """Why training ended early, if it did; no step follows."""
    mask: Mask | None = None
    """What a sparsifier has made of the mask that training began with."""
    unseen: bool = False
    """Whether what follows every step (guard, validation, history) is still to follow the last one."""


def pack(
    progress: Progress,
    model: nn.Module,
    optimizer: optim.Optimizer,
    scaler: torch.amp.GradScaler,
    memory: nn.Module,
) -> bytes:
    """The whole state of a training between two steps; `memory` is the objective's and the sparsifier's.

    Equal states have equal bytes, whether or not they were once unpacked.
    """
    good = progress.good
    state = {
        "format": FORMAT,
        "model": model.state_dict(),
        "optimizer": _ordered(optimizer.state_dict()),
        "scaler": scaler.state_dict(),
        "memory": memory.state_dict(),
        "step": progress.step,
        "losses": torch.stack(progress.losses).cpu() if progress.losses else torch.empty(0),
        "history": progress.history,
        "best": _packed(progress.best),
        "good": good and {**_packed(good), "best": _packed(good.best)},
        "selection_steps": progress.selection_steps,
        "stopped": progress.stopped,
        "mask": progress.mask and dict(progress.mask),
        "unseen": progress.unseen,
    }
    content = io.BytesIO()
    torch.save(_plain(state), content)
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
        Stale: another version of hedgerow left it at the end of a shorter training.
        ValueError: another version of hedgerow saved it in the middle of this one, or it is none.
    """
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as problem:  # bytes that are no state make it raise nearly anything
        raise ValueError("what was saved of this training is no training's state, and was not unpickled") from problem
    if state["format"] != FORMAT:
        if state.get("unseen") or state.get("stopped"):
            raise Stale(f"a shorter training left a state of format {state['format']}")
        raise ValueError(
            f"the saved training state has format {state['format']}, this hedgerow reads format {FORMAT}: "
            "finish the step with the version that began it"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    memory.load_state_dict(state["memory"])
    good = state["good"]
    device = next(model.parameters()).device
    return Progress(
        step=state["step"],
        losses=list(state["losses"].to(device)),
        history=state["history"],
        best=_best(state["best"]),
        good=good and Good(**{**_unpacked(good), "best": _best(good["best"])}),
        selection_steps=state["selection_steps"],
        stopped=state["stopped"],
        mask=state["mask"] and Mask(state["mask"]),
        unseen=state.get("unseen", False),
    )


def _ordered(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state with parameters and slots in order: safetensors gives those of a rewind point in any."""
    return {**state, "state": {number: dict(sorted(slots.items())) for number, slots in sorted(state["state"].items())}}


def _plain(state: Any) -> Any:
    """The same without shared objects: pickle writes the second mention of an object as a reference to the first.

    Whether two equal names are one object depends on whether they were once unpickled.
    """
    if isinstance(state, dict):
        return {_plain(name): _plain(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(_plain, state))
    return sys.intern(state) if isinstance(state, str) else state


def _packed(kept: Best | Good | None) -> Any:
    """The weights as a tensor, because pickle would keep the bytes as text half as large again."""
    return kept and {**vars(kept), "weights": torch.frombuffer(bytearray(kept.weights), dtype=torch.uint8)}


def _unpacked(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "weights": state["weights"].numpy().tobytes()}


def _best(state: dict[str, Any] | None) -> Best | None:
    return Best(**_unpacked(state)) if state else None
