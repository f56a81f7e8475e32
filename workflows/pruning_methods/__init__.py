"""Pruning methods: ways to one sparse network within a budget of training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from cluster.flow import Flow, Handle
from tasks.component import Component
from tasks.data import Examples
from tasks.models.prunable import output_layer, prunable
from tasks.objectives import Objective
from tasks.pruning.prune import Prune
from tasks.training.train import Train
from workflows.chain import Ticket
from workflows.subjects import without_weights


@dataclass(frozen=True)
class Contest:
    """What is the same for all methods."""

    train: Train
    """How networks are trained; a method decides for how long."""
    density: float
    """Share of the prunable weights that is kept in the end."""
    epochs: int
    """What may be spent, in epochs of `train`, over all trainings of a method together."""

    @cached_property
    def examples(self) -> Examples:
        """The training split."""
        return self.train.data.load("train")

    def training(self, epochs: int, **changes: Any) -> Train:
        """A training of so many epochs.

        Raises:
            ValueError: there are fewer epochs than one, or the changes do not fit.
        """
        if epochs < 1:
            raise ValueError(f"epochs: {self.epochs} are too few to be divided among the trainings of this method")
        return Train.model_validate({**dict(self.train), "epochs": epochs, **changes})

    def epochs_left(self, spent: int, objective: Objective) -> int:
        """How many epochs with this objective can still be paid for, to the nearest.

        Args:
            spent: sample-steps so far.
            objective: may cost more than that of `train`.
        """
        epoch = self.cost(1, objective)
        return (2 * (self.cost(self.epochs, self.train.objective) - spent) + epoch) // (2 * epoch)

    def cost(self, epochs: int, objective: Objective) -> int:
        """Sample-steps of so many epochs."""
        return epochs * len(self.examples) * objective.passes()

    def scoring(self, prune: Prune) -> int:
        """Sample-steps that the scores of a pruning take."""
        saliency = prune.saliency
        return (prune.rounds or saliency.rounds) * saliency.sample_steps(self.examples)

    def prune(self, **fields: Any) -> Prune:
        """A pruning to the density of the contest."""
        pruning = Prune.model_validate({**fields, "density": self.density, "threads": self.train.threads})
        return pruning.beside(self.train.data, self.train.architecture, self.train.seed)

    def check_prune(self, prune: Prune) -> None:
        """Counts what every layer of the dense network would keep, and the examples that the saliency draws.

        Raises:
            ValueError: some layer cannot hold that, or there are too few examples.
        """
        prune.saliency.check(self.examples)
        network = without_weights(self.train.architecture, self.train.data.signature())
        shapes = {name: kernel.shape for name, kernel in prunable(network).items()}
        sizes = {name: shape.numel() for name, shape in shapes.items()}
        prune.quotas(shapes, sizes, output_layer(network))


class Taxonomy(NamedTuple):
    """Where a method stands among the others (Piras et al. 2024, arXiv 2409.01249, section 3)."""

    stage: str
    """Whether it prunes before, during or after training."""
    steps: str
    """`one-shot` or `iterative`."""
    structure: str
    """`unstructured`, or what is removed as a whole."""
    scope: str
    """Over what weights compete: `global`, `layerwise`, ..."""
    criterion: str
    """By what they are ranked."""
    retraining: str
    """Of the sparse network."""


class PruningMethod(Component):
    """A way to a sparse network."""

    @property
    def taxonomy(self) -> Taxonomy:
        """Where it stands among the others."""
        raise NotImplementedError

    def check(self, contest: Contest) -> None:
        """Finds, before any work starts, what keeps it from reaching the density within the budget.

        Raises:
            ValueError: with what is allowed.
        """
        raise NotImplementedError

    async def ticket(self, flow: Flow, contest: Contest) -> Ticket:
        """Asks for the sparse network; it spends the budget of the contest, to half an epoch of its last training."""
        raise NotImplementedError

    def compacted(self, ticket: Ticket) -> Handle | None:
        """The sparse network as a smaller dense one, where its sparsity allows for that."""
        return None
