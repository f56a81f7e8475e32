"""Which examples withstand which attacks, up to which epsilon."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load, save
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.ball import ball
from tasks.data import Examples
from tasks.measuring.predictions import BLOCK, images_at
from tasks.seeds import generator


@dataclass
class Cascade:
    """How far attacks have come against N examples: the whole state of a robust evaluation.

    Epsilons rise over the examples that still stand, and at each epsilon every attack sees what the ones before it
    left. So an example that breaks at one epsilon is broken at every larger one, and nothing is attacked twice.
    """

    broken_level: torch.Tensor
    """(N,) int64: index of the smallest epsilon that broke the example; -1 if wrong unattacked, E if it stands."""
    broken_turn: torch.Tensor
    """(N,) int64: index of the attack that broke it, or -1."""
    rejected: torch.Tensor
    """(A,) int64: images that each attack returned from outside the ball or [0, 1]."""
    stage: int = 0
    """Finished pairs of an epsilon and an attack."""
    block: int = 0
    """Finished blocks of the stage under way."""
    cost: int = 0
    """Images that went through the model: one for each step of an attack and one to check what it returned."""

    @classmethod
    def begin(cls, correct: torch.Tensor, epsilons: int, attacks: int) -> Cascade:
        """Before the first attack: what is misclassified counts as broken at every epsilon."""
        level = torch.where(correct, epsilons, -1)
        return cls(level, torch.full_like(level, -1), torch.zeros(attacks, dtype=torch.int64))

    def to_bytes(self) -> bytes:
        """The state for a checkpoint."""
        position = torch.tensor([self.stage, self.block, self.cost])
        return save(
            {"level": self.broken_level, "turn": self.broken_turn, "rejected": self.rejected, "position": position}
        )

    @classmethod
    def from_bytes(cls, state: bytes) -> Cascade:
        """The state of a checkpoint."""
        tensors = load(state)
        stage, block, cost = tensors["position"].tolist()
        return cls(tensors["level"], tensors["turn"], tensors["rejected"], stage, block, cost)

    def run(
        self,
        model: nn.Module,
        examples: Examples,
        attacks: Sequence[Attack],
        epsilons: Sequence[float],
        seed: int,
        device: torch.device,
        after_block: Callable[[float], None],
    ) -> None:
        """Attacks what stands, from wherever the state is, to the end.

        Args:
            model: in evaluation mode, on `device`.
            examples: the N examples.
            attacks: in the order in which they try.
            epsilons: rising radii in input units.
            seed: of the attacks' noise, which depends on the stage and the block alone.
            device: where to compute.
            after_block: called with the share of stages done, when the state may be saved.
        """
        counted = _Counted(model)
        stages = len(epsilons) * len(attacks)
        while self.stage < stages:
            level, turn = divmod(self.stage, len(attacks))
            rows = self._met_by(level, turn, len(epsilons))
            blocks = -(-len(rows) // BLOCK)
            while self.block < blocks:
                noise = generator(seed, "attack", turn, repr(epsilons[level]), self.block, device=device)
                chosen = rows[self.block * BLOCK : (self.block + 1) * BLOCK]
                fallen, outside = _strike(counted, examples, chosen, attacks[turn], epsilons[level], noise, device)
                self.broken_level[chosen[fallen]] = level
                self.broken_turn[chosen[fallen]] = turn
                self.rejected[turn] += outside
                self.block += 1
                self.cost += counted.take()
                after_block((self.stage + self.block / blocks) / stages)
            self.stage, self.block = self.stage + 1, 0

    def _met_by(self, level: int, turn: int, epsilons: int) -> torch.Tensor:
        """The examples that this stage attacks, those it has already broken included."""
        standing = self.broken_level == epsilons
        broken_here = (self.broken_level == level) & (self.broken_turn == turn)
        return (standing | broken_here).nonzero().squeeze(1)

    def broken_by(self, level: int, turn: int) -> int:
        """How many examples this attack broke at this epsilon."""
        return int(((self.broken_level == level) & (self.broken_turn == turn)).sum())

    def standing(self, level: int) -> int:
        """How many examples no attack broke at this epsilon or a smaller one."""
        return int((self.broken_level > level).sum())


def _strike(
    model: nn.Module,
    examples: Examples,
    rows: torch.Tensor,
    attack: Attack,
    epsilon: float,
    noise: torch.Generator,
    device: torch.device,
) -> tuple[torch.Tensor, int]:
    """Attacks one block and checks what came back: which examples fell, and how many images broke the rules."""
    images, labels = images_at(examples, rows, device), examples.labels[rows].to(device)
    perturbed = attack.perturb(model, images, labels, epsilon, noise)
    allowed = ball(attack.norm, images, epsilon).contains(perturbed)
    with torch.no_grad():
        fooled = model(perturbed).argmax(dim=1) != labels
    return (fooled & allowed).cpu(), int((~allowed).sum())


class _Counted(nn.Module):
    """A model that counts the images it is shown."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen = 0
        self.train(model.training)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        logits: torch.Tensor = self.model(images)
        return logits

    def take(self) -> int:
        """The count since the last call."""
        seen, self.seen = self.seen, 0
        return seen
