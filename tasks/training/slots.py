"""The optimizer's slots at a rewind point, as a file that later trainings may start from."""

from __future__ import annotations

import torch
from safetensors.torch import save
from torch import nn, optim

from tasks.models.weights import load_tensors

_SCALE = "scaler/scale"
_GROWTH = "scaler/growth"


def slots_to_bytes(kind: str, model: nn.Module, optimizer: optim.Optimizer, scaler: torch.amp.GradScaler) -> bytes:
    """The slots of every parameter, and the scale of the losses if there is one, as safetensors.

    Args:
        kind: of the optimizer; its slots mean nothing to another kind.
        model: names the parameters.
        optimizer: over the model's parameters.
        scaler: of the losses; disabled unless training is in half precision.
    """
    tensors = {
        f"{kind}/{slot}/{name}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }
    if scaler.is_enabled():
        scale = scaler.state_dict()
        tensors[_SCALE] = torch.tensor(scale["scale"], dtype=torch.float64)
        tensors[_GROWTH] = torch.tensor(scale["_growth_tracker"])
    return save(tensors)


def restore_slots(
    content: bytes, kind: str, model: nn.Module, optimizer: optim.Optimizer, scaler: torch.amp.GradScaler
) -> None:
    """Puts stored slots into an optimizer that has not taken a step.

    Raises:
        ValueError: the slots are those of another kind of optimizer.
    """
    tensors = load_tensors(content)
    scale, growth = tensors.pop(_SCALE, None), tensors.pop(_GROWTH, None)
    if scaler.is_enabled() and scale is not None and growth is not None:
        scaler.load_state_dict({**scaler.state_dict(), "scale": scale.item(), "_growth_tracker": int(growth)})
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        stored_kind, slot, name = key.split("/", 2)
        if stored_kind != kind:
            raise ValueError(f"rewind_optimizer: the rewind point was trained with '{stored_kind}', not with '{kind}'")
        parameter = parameters[name]
        # Slots share the layout of their parameter: fused kernels walk both as flat memory.
        like = torch.empty_like(parameter) if value.shape == parameter.shape else torch.empty_like(value)
        optimizer.state[parameter][slot] = like.to(parameter.device).copy_(value).detach()
