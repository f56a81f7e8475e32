"""SynFlow: pruning before training that needs no data and empties no layer."""

from __future__ import annotations

from copy import deepcopy
from typing import ClassVar, Literal, cast

import torch
from torch import nn

from tasks.models.network import Network
from tasks.models.prunable import prunable
from tasks.pruning import Saliency
from tasks.pruning.candidate import Candidate


class SynFlow(Saliency):
    """SynFlow, iterative synaptic flow pruning, without data (Tanaka et al. 2020, equation 3 and Alg. 1).

    In a copy of the network whose parameters are their absolute values, `R` is the sum of the outputs for an input of
    ones, and the score of weight w is w dR/dw. Behind a rectifier, the scores that enter a unit then sum to those that
    leave it, less what biases contribute; so no layer can be emptied before others as long as few weights go at a time,
    which is what the rounds are for.

    - The ones are what the body is given, behind the normalisation: all of the scores is then the network's own and
      none of it the statistics of the data. A shift of the input has no part in the flow.
    - A batch norm is in evaluation mode, a fixed factor and shift for each channel: over a single input it would divide
      by zero. What it subtracts is added, as all else is.
    - Flows grow with every layer and are computed in float64.

    The sums agree for rectifiers, and for pooling between them; other activations and attention have scores too.
    """

    kind: Literal["synflow"] = "synflow"
    sees: ClassVar = "network"
    rounds: ClassVar[int] = 100

    def score(self, network: Candidate) -> dict[str, torch.Tensor]:
        """The product w dR/dw for every weight, float64 and not negative."""
        model = deepcopy(cast(Network, network.model)).double().eval()
        _make_positive(model)
        data = network.signature
        image = model.normalise.mean.new_zeros(1, data.channels, data.height, data.width)
        kernels = prunable(model)
        flow = model.body(torch.ones_like(model.normalise(image))).sum()
        gradients = torch.autograd.grad(flow, list(kernels.values()))
        return {
            name: (kernel.detach() * gradient).abs().cpu()
            for (name, kernel), gradient in zip(kernels.items(), gradients, strict=True)
        }


def _make_positive(model: nn.Module) -> None:
    """Makes every path through the network add to its outputs, in place."""
    for parameter in model.parameters():
        parameter.detach().abs_()
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
            layer.running_mean.abs_().neg_()
