"""Initial weights that depend on a seed alone."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from tasks.data import Signature
from tasks.models import Architecture
from tasks.models.prunable import prunable
from tasks.seeds import seed_of

Initialiser = Literal["default", "kaiming-normal", "xavier-normal"]
"""How kernels are drawn.

`default` is the architecture's own scheme. `kaiming-normal` (He et al. 2015, fan-in, ReLU gain) and `xavier-normal`
(Glorot & Bengio 2010, as in Frankle & Carbin 2019) draw every prunable kernel anew and set the biases beside them to
zero; norms, tokens and embeddings stay as the architecture made them.
"""


def initialise(
    architecture: Architecture, data: Signature, seed: int, initialiser: Initialiser = "default"
) -> nn.Module:
    """A network on the CPU with fresh weights; equal arguments give equal bits, and the global generator is untouched.

    Raises:
        ValueError: the image shape does not fit the architecture.
    """
    with torch.random.fork_rng(devices=[]):
        # Not `torch.manual_seed`: that one also reseeds the GPUs, which `fork_rng` would have to bring back.
        torch.default_generator.manual_seed(seed_of(seed, "initialise"))
        model = architecture.build(data)
        if initialiser != "default":
            _redraw(model, initialiser)
    return model


def _redraw(model: nn.Module, initialiser: Initialiser) -> None:
    for name, kernel in prunable(model).items():
        if initialiser == "kaiming-normal":
            nn.init.kaiming_normal_(kernel, nonlinearity="relu")
        else:
            nn.init.xavier_normal_(kernel)
        bias = model.get_submodule(name.removesuffix("weight").removesuffix(".")).bias
        if isinstance(bias, nn.Parameter):
            nn.init.zeros_(bias)
