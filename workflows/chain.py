"""A pruning chain: train, prune, rewind, and again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from cluster.flow import Flow, Handle
from tasks.models.prunable import output_layer, prunable
from tasks.pruning.prune import Prune
from tasks.schedules.constant import Constant
from tasks.training.train import Train
from workflows import Workflow
from workflows.subjects import at_path, check_sparsifier, require_no_teacher, without_weights


@dataclass(frozen=True)
class Ticket:
    """A network of the chain."""

    flow: Flow
    """Its place."""
    level: int
    """How many times it was pruned."""
    train: Train
    """How it was trained,"""
    start: Handle | None
    """from these weights; initial ones if None,"""
    mask: Handle | None
    """under this mask; dense if None."""
    trained: Handle
    """The training."""
    teacher: Handle | None = None
    """What it learned from beside its data, if its objective learns from a network."""
    dense: Handle | None = None
    """What a network under another mask starts from, where `start` is sparse already: it would find zeros there."""


class Chain(Workflow):
    """A workflow along pruning chains: what a level removes, how many there are, and where each restarts from."""

    prune: Prune | None = None
    """What one level removes; without it there is the dense network alone."""
    levels: int | None = Field(default=None, ge=1)
    """How many times to prune."""
    sparsity: float | None = Field(default=None, gt=0, lt=1)
    """Instead of `levels`: prune until at least this share of the prunable weights is gone."""
    rewind_step: int = Field(default=0, ge=0)
    """The training step whose weights every level restarts from; 0 are the initial weights."""
    retraining: Literal["rewind", "learning-rate-rewind", "fine-tune"] = "rewind"
    """After pruning: restart from the rewind point, or keep the weights and restart the schedule, or keep them and go
    on at a small learning rate (Renda et al. 2020)."""
    fine_tune_epochs: int | None = Field(default=None, ge=1)
    """Length of a fine-tuning."""
    fine_tune_rate: float | None = Field(default=None, gt=0)
    """Its constant learning rate."""

    @model_validator(mode="after")
    def _has_one_length(self) -> Self:
        lengths = sum(length is not None for length in (self.levels, self.sparsity))
        if self.prune is not None and lengths != 1:
            raise ValueError("give either levels or sparsity")
        if self.prune is not None and self.prune.density is not None and self.sparsity is not None:
            raise ValueError("prune.density says how far to prune: give levels, the number of equal shares to do it in")
        if self.prune is None and lengths:
            raise ValueError("levels and sparsity need prune, which says what a level removes")
        return self

    @model_validator(mode="after")
    def _says_how_to_fine_tune(self) -> Self:
        fine_tunes = self.retraining == "fine-tune"
        if fine_tunes != (self.fine_tune_epochs is not None) or fine_tunes != (self.fine_tune_rate is not None):
            raise ValueError("retraining: fine-tune, fine_tune_epochs and fine_tune_rate go together")
        return self

    def check_chain(self, train: Train) -> None:
        """Builds the network without weights, and counts what every level would keep.

        Raises:
            ValueError: the chain does not fit the training.
        """
        require_no_teacher(train)
        if train.sparsifier is not None and (self.prune is not None or self.rewind_step):
            raise ValueError("train.sparsifier: a chain prunes between its trainings; leave it out")
        with at_path("train.data"):
            train.data.load("validation")
            examples = train.data.load("train")
        check_sparsifier(train)
        if self.prune is not None:
            with at_path("prune"):
                self.prune.saliency.check(examples)
        steps = train.epochs * math.ceil(len(examples) / train.batch_size)
        if self.rewind_step >= steps:
            raise ValueError(f"rewind_step: {self.rewind_step} (training has {steps} steps; it must be fewer)")
        list(self.densities(train))
        if self.retraining != "rewind":
            with at_path("train"):
                self._retrained(train)

    def densities(self, train: Train) -> Iterator[float]:
        """The density after each level, by counting alone.

        Raises:
            ValueError: the images do not fit the network, or no level reaches the sparsity.
        """
        with at_path("train.architecture"):
            network = without_weights(train.architecture, train.data.signature())
        if self.prune is None:
            return
        shapes = {name: kernel.shape for name, kernel in prunable(network).items()}
        sizes = {name: shape.numel() for name, shape in shapes.items()}
        total, output_name = sum(sizes.values()), output_layer(network)
        level, kept = 0, dict(sizes)
        while self._goes_on(level, (left := sum(kept.values())) / total):
            with at_path("prune"):
                quotas = self.pruning(train, level + 1).quotas(shapes, kept, output_name)
            for names, stay in quotas:
                # Of kernels that are ranked together only the sum is known.
                kept |= dict.fromkeys(names, 0) | {names[0]: stay}
            if sum(kept.values()) == left or not all(stay for _, stay in quotas):
                wanted = f"sparsity {self.sparsity}" if self.sparsity else f"level {self.levels}"
                raise ValueError(
                    f"{'sparsity' if self.sparsity else 'levels'}: {wanted} is out of reach; pruning ends at level "
                    f"{level}, sparsity {1 - left / total:.4f}, with {left} of {total} weights left"
                )
            level += 1
            yield sum(kept.values()) / total

    def tickets(self, flow: Flow, train: Train, start: Handle | None = None, extra_epochs: int = 0) -> Iterator[Ticket]:
        """The dense network and those of every level, asked for one after the other (Frankle & Carbin 2019, Alg. 2).

        Args:
            flow: where the chain stands.
            train: how each is trained.
            start: the initial weights; those that `train` draws unless given.
            extra_epochs: by which the last training is longer.
        """
        if self.rewind_step:
            start = flow.step(train.model_copy(update={"stop_at": self.rewind_step}), start=start)
        depth = len(list(self.densities(train)))
        mask, dense = None, None
        for level in range(depth + 1):
            here = flow.at(level=level) if self.prune is not None else flow
            if level == depth and extra_epochs:
                train = train.model_copy(update={"epochs": train.epochs + extra_epochs})
            trained = here.step(train, start=start, mask=mask)
            yield Ticket(here, level, train, start, mask, trained, dense=dense)
            if self.retraining != "rewind":
                start, train, dense = trained, self._retrained(train), dense or trained
            if level < depth:
                mask = here.step(self.pruning(train, level + 1), trained=trained, mask=mask)

    def pruning(self, train: Train, level: int) -> Prune:
        """What one level removes; on the way to a density every level leaves the same share of what it finds."""
        assert self.prune is not None  # there are no levels without it
        prune = self.prune.beside(train.data, train.architecture, train.seed)
        if prune.density is None or self.levels is None:
            return prune
        return prune.model_copy(update={"density": prune.density ** (level / self.levels)})

    def _goes_on(self, level: int, density: float) -> bool:
        return level < self.levels if self.levels is not None else density > 1 - (self.sparsity or 0)

    def _retrained(self, train: Train) -> Train:
        """The training of the levels that keep their weights.

        Raises:
            ValueError: such a training cannot be.
        """
        update: dict[str, Any] = {"schedule_from": "zero"}
        if self.retraining == "fine-tune":
            optimizer = train.optimizer.model_copy(update={"learning_rate": self.fine_tune_rate})
            update |= {"epochs": self.fine_tune_epochs, "schedule": Constant(), "optimizer": optimizer}
        return Train.model_validate({**dict(train), **update})
