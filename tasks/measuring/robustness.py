"""Which examples withstand which attacks, up to which epsilon."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load, save

from tasks.attacks import Attack
from tasks.attacks.ball import TOLERANCE, ball
from tasks.attacks.draws import Draws
from tasks.attacks.minimum_norm import MinimumNorm
from tasks.data import Examples
from tasks.measuring.gauge import Gauge
from tasks.measuring.outcomes import Outcomes
from tasks.measuring.predictions import images_at
from tasks.seeds import seed_of


@dataclass(frozen=True)
class Siege:
    """What a cascade works on: it stays the same while the state moves."""

    model: Gauge
    """In evaluation mode, on `device`."""
    examples: Examples
    """N of them."""
    indices: torch.Tensor
    """(N,) int64, their places in the split: what an example's random numbers depend on."""
    attacks: Sequence[Attack]
    """In the order in which they try."""
    names: Sequence[str]
    """A name for each attack: what its random numbers depend on."""
    epsilons: Sequence[float]
    """Rising radii in input units."""
    seed: int
    device: torch.device
    batch: int
    """Examples attacked together."""
    votes: int = 1
    """Forward passes whose mean probabilities decide whether an example is broken."""
    surrogates: Sequence[Gauge] = ()
    """The networks that `transfer` attacks craft their images on."""
    descend: bool = False
    """Whether the first attack, too, sets in at the largest epsilon and goes down."""
    known: Outcomes | None = None
    """What the same attacks did to the same examples at other radii."""

    def at_once(self, turn: int) -> bool:
        """Whether this attack looks for the nearest mistake, and there are several epsilons to look it up for."""
        return isinstance(self.attacks[turn], MinimumNorm) and len(self.epsilons) > 1

    def asked(self, turn: int) -> torch.Tensor:
        """(N,) bool, for which examples all that this attack can find is known: its nearest mistake is the same at
        every radius, unless it never met the example, since that broke at the smallest known radius before its turn.
        """
        if self.known is None or len(self.known.threat.epsilons) < 2 or not isinstance(self.attacks[turn], MinimumNorm):
            return torch.zeros(len(self.examples), dtype=torch.bool)
        return self.known.broken_at > torch.tensor(self.known.threat.epsilons[0], dtype=torch.float32)

    @cached_property
    def radii(self) -> torch.Tensor:
        """(E,) float32, the epsilons."""
        return torch.tensor([*self.epsilons], dtype=torch.float32)

    @cached_property
    def withstood(self) -> torch.Tensor:
        """(N,) int64, how many of the epsilons each example is known to withstand: it is not attacked at these.

        An example that stands at every known radius is not believed to withstand any: where nothing succeeds, it may be
        the attacks that fail.
        """
        if self.known is None:
            return torch.zeros(len(self.examples), dtype=torch.int64)
        rungs = torch.tensor([0.0, *self.known.threat.epsilons], dtype=torch.float32)
        below = rungs[torch.searchsorted(rungs[1:], self.known.broken_at)]
        return torch.searchsorted(self.radii, below.masked_fill(self.known.broken_at.isinf(), 0.0), right=True)

    def levels_of(self, distances: torch.Tensor) -> torch.Tensor:
        """The index of the smallest epsilon that reaches as far as each of these, up to rounding, or E: int64."""
        return torch.searchsorted(self.radii + TOLERANCE * self.radii.clamp(min=1), distances)


@dataclass
class Cascade:
    """How far attacks have come against N examples: the whole state of a robust evaluation.

    An example that breaks at one epsilon is broken at every larger one, so accuracy falls along the curve by
    construction, and each attack only meets what still stands. The first attack walks the epsilons upward over its
    survivors. Every later one sets in right below the smallest epsilon that has broken the example so far, and goes
    further down as long as it succeeds: an example costs each of them one failure, not one for every epsilon. An attack
    that looks for the nearest mistake is run once for all epsilons. Where other radii are known already, an example is
    only attacked between the largest that it withstood and the smallest change that broke it.
    """

    level: torch.Tensor
    """(N,) int64: index of the smallest epsilon that broke the example; -1 if wrong unattacked, E if it stands."""
    by: torch.Tensor
    """(N,) int64: index of the attack that did, or -1."""
    distance: torch.Tensor
    """(N,) float32: the smallest change found that breaks the example; infinite if none, 0 if wrong unattacked."""
    rejected: torch.Tensor
    """(A,) int64: images that each attack returned from outside the ball or [0, 1]."""
    cost: torch.Tensor
    """(A,) int64: images that went through the network for each attack, those that check what it returned included."""
    queue: torch.Tensor
    """(n,) int64: the examples of the round under way."""
    fell: torch.Tensor
    """(N,) bool: those of them that fell in it."""
    turn: int = 0
    """Which attack is under way."""
    round: int = 0
    """Its finished rounds: epsilons if it walks upward, else how far down it has gone."""
    done: int = 0
    """Finished examples of the queue."""

    @classmethod
    def begin(cls, correct: torch.Tensor, epsilons: int, attacks: int) -> Cascade:
        """Before the first attack: what is misclassified, (N,) bool, counts as broken at every epsilon."""
        level = torch.where(correct, epsilons, -1)
        return cls(
            level=level,
            by=torch.full_like(level, -1),
            distance=torch.where(correct, torch.inf, 0.0),
            rejected=torch.zeros(attacks, dtype=torch.int64),
            cost=torch.zeros(attacks, dtype=torch.int64),
            queue=correct.nonzero().squeeze(1),
            fell=torch.zeros_like(correct),
        )

    def take_over(self, siege: Siege, known: Outcomes) -> None:
        """Starts from what is known: what was broken within an epsilon is broken there, by whatever did it."""
        correct, broken = self.level > 0, known.broken_at.isfinite()
        level = torch.where(broken, siege.levels_of(known.distances), len(siege.epsilons))
        self.level = torch.where(correct, level, self.level)
        found = correct & (level < len(siege.epsilons))
        self.by = torch.where(found, known.broken_by, self.by)
        self.distance = torch.where(found, known.distances, self.distance)
        self.queue = self._meets(siege)

    def to_bytes(self) -> bytes:
        """The state for a checkpoint."""
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        return save({name: torch.as_tensor(value).contiguous() for name, value in state.items()})

    @classmethod
    def from_bytes(cls, state: bytes) -> Cascade:
        """The state of a checkpoint."""
        state_of: dict[str, Any] = {name: value if value.ndim else int(value) for name, value in load(state).items()}
        return cls(**state_of)

    def run(self, siege: Siege, after_block: Callable[[float], None]) -> None:
        """Attacks from wherever the state is to the end.

        Args:
            siege: what is attacked, how and with what; the same as when the state was saved.
            after_block: called with the share of the work done, when the state may be saved.
        """
        while self.turn < len(siege.attacks):
            while self.done < len(self.queue):
                self._strike(siege, self.queue[self.done : self.done + siege.batch])
                self.done = min(self.done + siege.batch, len(self.queue))
                after_block(self._share(siege))
            self._next_round(siege)

    def _walks_upward(self, siege: Siege) -> bool:
        return self.turn == 0 and not siege.at_once(0) and not siege.descend

    def _next_round(self, siege: Siege) -> None:
        """Of this attack, or the first of the next."""
        self.round, self.done = self.round + 1, 0
        if siege.at_once(self.turn) or self.round == len(siege.epsilons):
            self.turn, self.round = self.turn + 1, 0
        self.queue = self._meets(siege) if self.turn < len(siege.attacks) else self.queue[:0]
        self.fell.fill_(False)

    def _meets(self, siege: Siege) -> torch.Tensor:
        """The examples of the round that begins, (n,) int64."""
        met = (self.level > siege.withstood) & ~siege.asked(self.turn)
        if self._walks_upward(siege):
            met &= (self.level > self.round) & (siege.withstood <= self.round)
        elif self.round:
            met &= self.fell
        return met.nonzero().squeeze(1)

    def _share(self, siege: Siege) -> float:
        """Of the whole work; what a round finds is not known before, so later rounds share what is left."""
        here = self.done / len(self.queue)
        rounds = 1 if siege.at_once(self.turn) else len(siege.epsilons)
        even = rounds == 1 or self._walks_upward(siege)
        turn = (self.round + here) / rounds if even else 1 - (1 - here / 2) * 0.5**self.round
        return (self.turn + turn) / len(siege.attacks)

    def _strike(self, siege: Siege, rows: torch.Tensor) -> None:
        """Attacks some examples, checks what comes back and takes it down."""
        attack, name = siege.attacks[self.turn], siege.names[self.turn]
        indices = siege.indices[rows]
        tried = torch.full_like(rows, self.round) if self._walks_upward(siege) else self.level[rows] - 1
        draws = Draws(seed_of(siege.seed, "attack", name), indices.to(siege.device))
        images, labels = images_at(siege.examples, rows, siege.device), siege.examples.labels[rows].to(siege.device)
        with seeded_model(siege.device, siege.seed, "model", name, self.round, int(indices[0])):
            if isinstance(attack, MinimumNorm) and siege.at_once(self.turn):
                perturbed, _ = attack.nearest(siege.model, images, labels, draws)
                within = ball(attack.norm, images, torch.inf)
            else:
                epsilon = siege.radii[tried].to(siege.device)
                perturbed = attack.perturb(siege.model, images, labels, epsilon, draws)
                within = ball(attack.norm, images, epsilon)
            fooled = decided(siege.model, perturbed, siege.votes) != labels
        allowed = within.contains(perturbed)
        broken = (fooled & allowed).cpu()
        distance = torch.where(broken, within.distances(perturbed).cpu(), torch.inf)
        reached = siege.levels_of(distance)
        if not siege.at_once(self.turn):
            reached = torch.where(broken, torch.minimum(reached, tried), reached)
        deeper = reached < self.level[rows]
        self.level[rows] = torch.where(deeper, reached, self.level[rows])
        self.by[rows] = torch.where(deeper, self.turn, self.by[rows])
        self.distance[rows] = torch.minimum(self.distance[rows], distance)
        self.fell[rows] = deeper
        self.rejected[self.turn] += int((~allowed).sum())
        self.cost[self.turn] += sum(each.take() for each in (siege.model, *siege.surrogates))


@contextmanager
def seeded_model(device: torch.device, *purpose: int | str) -> Iterator[None]:
    """A model that draws random numbers takes them from the global generator: seeded here, put back afterwards."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_gpu else []):
        torch.default_generator.manual_seed(seed_of(*purpose))
        if on_gpu:
            torch.cuda.manual_seed(seed_of(*purpose))
        yield


def decided(model: Gauge, images: torch.Tensor, votes: int) -> torch.Tensor:
    """The predicted classes (N,): those of the largest mean probability over so many forward passes.

    Where an answer is not a number, the network has overflowed and the class is -1: that is a mistake, whatever the
    label.
    """
    with torch.no_grad():
        answers: torch.Tensor = model(images)
        if votes > 1:
            answers = torch.stack([answers, *(model(images) for _ in range(votes - 1))]).softmax(dim=2).mean(dim=0)
    return answers.argmax(dim=1).masked_fill_(answers.isnan().any(dim=1), -1)
