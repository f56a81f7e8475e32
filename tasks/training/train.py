"""The task that trains a network: from its initial weights, from a rewind point, or from weights already trained."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tasks.component import kind_of
from tasks.data import Dataset, Signature
from tasks.data.augmentation import Augmentation
from tasks.data.augmentation.none import Unchanged
from tasks.device import device_of, settle
from tasks.models import Architecture
from tasks.models.initialise import Initialiser
from tasks.objectives import Objective
from tasks.objectives.standard import Standard
from tasks.optimizers import Optimizer
from tasks.pruning.sparsifiers import Sparsifier
from tasks.schedules import Schedule
from tasks.schedules.constant import Constant
from tasks.task import Context, Result, Stored, Task
from tasks.training.guard import Guard
from tasks.training.loop import layers_seeded_apart
from tasks.training.robust_validation import RobustValidation
from tasks.training.run import Run
from tasks.training.validation import radius_of

ANY = Signature(1, 1, 1, 1, (0.5,), (0.5,))
"""Images as good as others where only a question about an objective is asked."""


class Train(Task):
    """Trains a network, dense or under a mask; weight rewinding after Frankle et al. 2020 (arXiv 1912.05671).

    The published ways to retrain a pruned network (Renda et al. 2020, arXiv 2003.02389) are one field each:

    - weight rewinding: `start` is the step that ended at `stop_at: k`, or nothing for k = 0; training goes on from k;
    - learning-rate rewinding: `start` is the trained network, `schedule_from: zero`;
    - fine-tuning: the same with the schedule `constant`, a small learning rate and fewer epochs.
    """

    kind: Literal["train"] = "train"
    data: Dataset
    """What to learn; its validation part picks the best network."""
    architecture: Architecture
    """The network."""
    initialiser: Initialiser = "default"
    """How initial weights are drawn."""
    objective: Objective = Standard()
    """What is minimised."""
    optimizer: Optimizer
    """How weights follow their gradients."""
    schedule: Schedule = Constant()
    """The learning rate over the whole training."""
    epochs: int = Field(ge=1)
    """Length of the schedule, whether or not all of it is run here."""
    stop_at: int | None = Field(default=None, ge=0)
    """Stop after this many steps of the schedule: the result is a rewind point. 0 gives the initial weights."""
    schedule_from: Literal["start", "zero"] = "start"
    """Where schedule and data order begin, given weights to start from: at the step they had reached, or anew."""
    rewind_optimizer: bool = False
    """Take the optimizer's slots from the rewind point too, instead of beginning with empty ones."""
    batch_size: int = Field(default=128, ge=1)
    """Examples a step; the last batch of an epoch may be smaller."""
    augmentation: Augmentation = Unchanged()
    """Random changes to training images."""
    seed: int = Field(default=0, ge=0)
    """Of data order, augmentation, attack noise and dropout."""
    init_seed: int = Field(default=0, ge=0)
    """Of the initial weights, and of nothing else."""
    validate_every: int = Field(default=1, ge=1)
    """Epochs between validations; the last step is always validated."""
    robust_validation: RobustValidation | None = None
    """Choose the best network by robust accuracy, and perhaps stop when it no longer rises; by clean accuracy unless
    given."""
    guard: Guard | None = None
    """Stop and go back when robust accuracy on training data collapses; nothing watches unless given."""
    sparsifier: Sparsifier | None = None
    """What prunes the network while it trains, or prepares it to be pruned; nothing unless given."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What matrix products are computed in; weights, optimizer and validation stay in fp32."""
    compile: bool = False
    """Compile the network for training. Part of the identity: fused kernels round differently."""
    channels_last: bool = False
    """Keep images and kernels in NHWC order. Part of the identity: other kernels round differently."""
    world_size: int = Field(default=1, ge=1)
    """Processes that train the network together, each with `threads` and `gpus` of its own and a contiguous part of
    every batch. Part of the identity: gradients are added in another order, noise is drawn and batch norm normalises
    part by part."""

    @model_validator(mode="after")
    def _slots_belong_to_a_place_in_the_schedule(self) -> Self:
        if self.rewind_optimizer and self.schedule_from == "zero":
            raise ValueError("rewind_optimizer needs schedule_from: start, where the slots were left")
        return self

    @model_validator(mode="after")
    def _differentiable_when_compiled(self) -> Self:
        if self.compile and self.objective.second_order:
            raise ValueError(
                f"compile: {kind_of(type(self.objective))} needs second derivatives, which a compiled network does not "
                "give; leave it off"
            )
        return self

    @model_validator(mode="after")
    def _no_fall_by_design(self) -> Self:
        if self.guard is not None and self.objective.grows and self.schedule_from == "zero":
            raise ValueError(
                "guard: with schedule_from: zero and a budget that begins small, trained weights lose robustness by "
                "design, and that is no collapse: give a budget such as `fixed`, or no guard"
            )
        return self

    @model_validator(mode="after")
    def _sparsifies_to_the_end(self) -> Self:
        if self.sparsifier is not None and self.stop_at is not None:
            raise ValueError("sparsifier: its state is not kept at a rewind point: leave out stop_at")
        if self.sparsifier is not None and self.robust_validation is not None and self.robust_validation.patience:
            raise ValueError(
                "robust_validation.patience: it may end the training before the sparsifier has done its work; leave it "
                "out"
            )
        if self.sparsifier is not None and self.sparsifier.prunes and self.guard is not None:
            raise ValueError(
                f"guard: {kind_of(type(self.sparsifier))} prunes during training, and there is no going back to denser "
                "networks; leave out one of them"
            )
        return self

    @model_validator(mode="after")
    def _fits_several_processes(self) -> Self:
        if self.world_size == 1:
            return self
        if self.batch_size < self.world_size:
            raise ValueError(f"world_size: a batch of {self.batch_size} has no part for each of {self.world_size}")
        if self.gpus not in (0, 1):
            raise ValueError(f"gpus: {self.gpus:g} for each of {self.world_size} processes; allowed: 0, 1")
        if self.objective.memory(ANY, examples=1, batch=1).state_dict():
            raise ValueError(
                f"world_size: {kind_of(type(self.objective))} remembers from step to step how it met its examples, and "
                "here no process meets them all; train in one"
            )
        return self

    @model_validator(mode="after")
    def _watch_what_is_trained_against(self) -> Self:
        for name, watch in (("robust_validation", self.robust_validation), ("guard", self.guard)):
            try:
                if watch is not None:
                    radius_of(watch.attack, watch.epsilon, self.objective)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return self

    def run(self, context: Context, **inputs: Stored) -> Result:
        """Trains up to `stop_at`, or to the end.

        Args:
            context: of the step; training goes on from what an earlier attempt saved, to the same bits. Of several
                processes only the first asks its own; the `save` of another is called for it to leave with the first.
            inputs: `start`, an earlier training to start from (initial weights if absent); `mask`, a step with a
                `mask.safetensors` (that of `start` if absent: a sparse network stays sparse); `teacher`, a training of
                the same architecture, for an objective that learns from one.

        Returns:
            Metrics: `step`, `epochs`, `last` and `best` {accuracy, loss, step, epoch} on validation data,
            `sample_steps` (examples seen here times forward-backward passes), `density` and `parameters`, `digest`.
            Files: `weights.safetensors` (last), `best.safetensors` (highest validation accuracy, the earliest of
            equals), `history.jsonl`, `mask.safetensors` under a mask, and at a rewind point `optimizer.safetensors`,
            `memory.safetensors` if the objective remembers anything, and `progress.state`: the same training with a
            later `stop_at`, or none, may be given that as its saved state, and ends with the same bytes as without it.

            With `robust_validation`, `best` has the highest robust accuracy, and it and `last` a `robust_accuracy`.
            With it or `guard`, `selection_steps` are the images that went through the network for them. A training
            that they ended says so in `stopped`: {why: patience, detected_at}, or {why: catastrophic-overfitting,
            detected_at, rolled_back_to, before, after} (accuracies under the guard's attack). It may end before
            `stop_at`: then there is no `optimizer.safetensors`. After a rollback, `last` and `step` are those of the
            network that is returned, `sample_steps` count all that was trained.

            A `sparsifier` may end it too. Where it prunes, `best` is the best network of the final mask.

        Raises:
            Diverged: the loss or a weight is NaN or infinite.
            ValueError: fields and inputs do not fit, or there are not `world_size` processes.
            ConnectionError: another of them is gone.
        """
        if unknown := inputs.keys() - {"start", "mask", "teacher"}:
            raise ValueError(f"train has no input '{min(unknown)}'; allowed: start, mask, teacher")
        if self.objective.taught != ("teacher" in inputs):
            need = "needs a teacher" if self.objective.taught else "learns from no teacher"
            raise ValueError(f"objective {kind_of(type(self.objective))} {need}: input 'teacher'")
        settle(self.threads)
        device = device_of(self.gpus)
        with layers_seeded_apart(device):
            return Run(self, device, inputs).run(context)
