"""How a network in training does: its accuracy on held-out examples, every epoch, and what it withstands."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from tasks.attacks import Attack
from tasks.attacks.ball import require_radius
from tasks.attacks.transfer import Transfer
from tasks.component import kind_of
from tasks.data import Examples
from tasks.data.batches import in_order
from tasks.data.splits import stratified
from tasks.measuring.gauge import Gauge
from tasks.measuring.input_gradient import with_fast_input_gradients
from tasks.measuring.predictions import BLOCK, images_at
from tasks.measuring.robustness import Cascade, Siege, decided, seeded_model
from tasks.objectives import Objective

BATCH_SIZE = 1000
"""Large batches are fast; the number is fixed because another would add floats in another order."""


@dataclass(frozen=True)
class Score:
    """How a model does on some examples."""

    accuracy: float
    """Share classified correctly."""
    loss: float
    """Mean cross-entropy in nats."""


def validate(model: nn.Module, examples: Examples, device: torch.device) -> Score:
    """Measures a model in evaluation mode and full precision; its mode is left as it was."""
    mode = model.training
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    with torch.inference_mode():
        for images, labels in in_order(examples, BATCH_SIZE, device):
            logits = model(images)
            correct += (logits.argmax(1) == labels).sum()
            loss += F.cross_entropy(logits, labels, reduction="sum")
    model.train(mode)
    return Score(correct.item() / len(examples), loss.item() / len(examples))


def radius_of(attack: Attack, epsilon: float | None, objective: Objective) -> float:
    """The radius that a training is measured at: the largest of its objective, unless another is given.

    Raises:
        ValueError: there is none, it is in another norm or too large, or the attack needs another network.
    """
    if any(isinstance(part, Transfer) for part in attack.parts()):
        raise ValueError("a transfer takes images from another network, and here is none")
    if objective.threat is None:
        if epsilon is None:
            raise ValueError(f"give epsilon: objective `{kind_of(type(objective))}` trains against no attack")
    else:
        norm, largest = objective.threat
        if attack.norm != norm:
            raise ValueError(f"the norm of the attack is {attack.norm}, but that of the objective is {norm}")
        epsilon = largest if epsilon is None else epsilon
    require_radius(attack.norm, epsilon)
    return epsilon


class Trial:
    """What a network withstands, measured again and again while it trains.

    The examples and the attack's noise are the same every time: two figures differ by the network alone. A frozen twin
    of it is attacked, in evaluation mode and full precision; the network itself is only read.

    Args:
        attack: what it must withstand; the parts of an ensemble meet what the ones before them left.
        epsilon: radius in input units.
        examples: to choose from.
        count: how many, drawn evenly over the classes; all if there are no more, or if not given.
        model: the network, on `device`.
        device: where to compute.
        seed: of the attack's noise.

    Raises:
        ValueError: the attack cannot attack this network.
    """

    def __init__(
        self,
        attack: Attack,
        epsilon: float,
        examples: Examples,
        count: int | None,
        model: nn.Module,
        device: torch.device,
        seed: int,
    ) -> None:
        attack.check_model(model)
        labels = examples.labels.cpu()
        held = len(labels)
        indices = torch.from_numpy(stratified(labels.numpy(), min(count or held, held), "trial"))
        twin = deepcopy(model).eval().requires_grad_(False)
        attacks = attack.parts()
        self._siege = Siege(
            model=Gauge(with_fast_input_gradients(twin) if device.type == "cpu" else twin),
            examples=Examples(examples.images.cpu()[indices], labels[indices]),
            indices=indices,
            attacks=attacks,
            names=[f"{turn}-{part.label()}" for turn, part in enumerate(attacks)],
            epsilons=(epsilon,),
            seed=seed,
            device=device,
            batch=BLOCK,
        )

    def measure(self, model: nn.Module) -> tuple[float, int]:
        """Robust accuracy, the share that is right before and under attack, and images that went through the network.

        Where an answer is not a number, it is wrong.
        """
        siege = self._siege
        siege.model.model.load_state_dict(model.state_dict())
        cascade = Cascade.begin(self._correct(), epsilons=1, attacks=len(siege.attacks))
        clean = siege.model.take()
        cascade.run(siege, lambda _: None)
        return (cascade.level == 1).double().mean().item(), clean + int(cascade.cost.sum())

    def _correct(self) -> torch.Tensor:
        """Which examples are right as they are, (N,) bool."""
        siege = self._siege
        right = []
        with seeded_model(siege.device, siege.seed, "model"):
            for rows in torch.split(torch.arange(len(siege.examples)), siege.batch):
                images = images_at(siege.examples, rows, siege.device)
                right.append(decided(siege.model, images, votes=1).cpu() == siege.examples.labels[rows])
        return torch.cat(right)
