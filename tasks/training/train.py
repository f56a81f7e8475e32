"""The task that trains a network: from its initial weights, from a rewind point, or from weights already trained."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from safetensors.torch import save
from torch import nn

from tasks.component import kind_of
from tasks.data import Dataset, Examples
from tasks.data.augmentation import Augmentation
from tasks.data.augmentation.none import Unchanged
from tasks.data.batches import Loader
from tasks.device import device_of, settle
from tasks.models import Architecture
from tasks.models.initialise import Initialiser, initialise
from tasks.models.weights import load_tensors, restore, weights_to_bytes
from tasks.objectives import Objective
from tasks.objectives.standard import Standard
from tasks.optimizers import Optimizer
from tasks.pruning.mask import Enforcer, Mask
from tasks.schedules import Schedule
from tasks.schedules.constant import Constant
from tasks.seeds import seed_of
from tasks.task import Context, Result, Stored, Task
from tasks.training.checkpoint import Best, Progress, unpack
from tasks.training.guard import Guard
from tasks.training.loop import Loop, compiled, layers_seeded_apart
from tasks.training.robust_validation import RobustValidation
from tasks.training.slots import restore_slots, slots_to_bytes
from tasks.training.validation import Trial, radius_of, validate

SLOTS = "optimizer.safetensors"
MEMORY = "memory.safetensors"
HALF = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What matrix products are computed in; weights, optimizer and validation stay in fp32."""
    compile: bool = False
    """Compile the network for training. Part of the identity: fused kernels round differently."""
    channels_last: bool = False
    """Keep images and kernels in NHWC order. Part of the identity: other kernels round differently."""

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
            context: of the step; training goes on from what an earlier attempt saved, to the same bits.
            inputs: `start`, an earlier training to start from (initial weights if absent); `mask`, a step with a
                `mask.safetensors` (that of `start` if absent: a sparse network stays sparse).

        Returns:
            Metrics: `step`, `epochs`, `last` and `best` {accuracy, loss, step, epoch} on validation data,
            `sample_steps` (examples seen here times forward-backward passes), `density` and `parameters`, `digest`.
            Files: `weights.safetensors` (last), `best.safetensors` (highest validation accuracy, the earliest of
            equals), `history.jsonl`, `mask.safetensors` under a mask, `optimizer.safetensors` at a rewind point and, if
            the objective remembers anything, `memory.safetensors`.

            With `robust_validation`, `best` has the highest robust accuracy, and it and `last` a `robust_accuracy`.
            With it or `guard`, `selection_steps` are the images that went through the network for them. A training
            that they ended says so in `stopped`: {why: patience, detected_at}, or {why: catastrophic-overfitting,
            detected_at, rolled_back_to, before, after} (accuracies under the guard's attack). It may end before
            `stop_at`: then there is no `optimizer.safetensors`. After a rollback, `last` and `step` are those of the
            network that is returned, `sample_steps` count all that was trained.

        Raises:
            Diverged: the loss or a weight is NaN or infinite.
            ValueError: fields and inputs do not fit.
        """
        if unknown := inputs.keys() - {"start", "mask"}:
            raise ValueError(f"train has no input '{min(unknown)}'; allowed: start, mask")
        settle(self.threads)
        device = device_of(self.gpus)
        with layers_seeded_apart(device):
            return _Training(self, device, inputs.get("start"), inputs.get("mask")).run(context)


class _Training:
    """One run of a `Train`."""

    def __init__(self, task: Train, device: torch.device, start: Stored | None, mask: Stored | None) -> None:
        self.task = task
        validation = task.data.load("validation")
        self.validation = Examples(validation.images.to(device), validation.labels.to(device))
        layout = torch.channels_last if task.channels_last else torch.contiguous_format
        examples = task.data.load("train")
        loader = Loader(
            examples,
            batch_size=task.batch_size,
            device=device,
            augmentation=task.augmentation,
            channels_last=task.channels_last,
        )
        self.per_epoch = len(loader)
        self.total = task.epochs * self.per_epoch
        self.begin, self.stop = self._span(start)
        self.mask = _mask(start, mask)
        self.model = initialise(task.architecture, task.data.signature(), task.init_seed, task.initialiser)
        if start is not None:
            restore(self.model, start.read("weights.safetensors"))
        if self.mask is not None:
            self.mask.apply_(self.model)
        self.model.to(device).to(memory_format=layout)
        optimizer = task.optimizer.build(self.model.parameters())
        self.loop = Loop(
            model=self.model,
            forward=compiled(self.model) if task.compile else self.model,
            optimizer=optimizer,
            scaler=torch.amp.GradScaler(device.type, enabled=task.precision == "fp16"),
            enforcer=Enforcer(self.mask, self.model, optimizer) if self.mask is not None else None,
            loader=loader,
            examples=len(examples),
            batch_size=task.batch_size,
            begin=self.begin,
            objective=task.objective,
            memory=task.objective.memory(task.data.signature(), len(examples), task.batch_size).to(device),
            learning_rate=task.optimizer.learning_rate,
            schedule=task.schedule,
            steps=self.total,
            seed=task.seed,
            device=device,
            half=HALF[task.precision],
        )
        if start is not None and task.rewind_optimizer:
            restore_slots(_slots(start), kind_of(type(task.optimizer)), self.model, optimizer, self.loop.scaler)
        if start is not None and task.schedule_from == "start":
            _recall(start, self.loop.memory)
        self.robust = self._trial("robust-validation", task.robust_validation, self.validation)
        self.watched = self._trial("guard", task.guard, examples)
        self.given = start is not None

    def _trial(self, name: str, watch: RobustValidation | Guard | None, examples: Examples) -> Trial | None:
        if watch is None:
            return None
        epsilon = radius_of(watch.attack, watch.epsilon, self.task.objective)
        seed = seed_of(self.task.seed, name)
        return Trial(watch.attack, epsilon, examples, watch.examples, self.model, self.loop.device, seed)

    def run(self, context: Context) -> Result:
        loop = self.loop
        saved = context.saved()
        progress = (
            Progress(self.begin)
            if saved is None
            else unpack(saved, self.model, loop.optimizer, loop.scaler, loop.memory)
        )
        if self.stop == 0:
            progress.history = [{"epoch": 0, "step": 0, **self._validate(progress)}]
        if saved is None and self.given:
            self._look(progress)
        if progress.stopped is None:
            loop.run(progress, self.stop, self._after_step, context)
        return self._result(progress)

    def _span(self, start: Stored | None) -> tuple[int, int]:
        """The first step, and the one after the last."""
        task = self.task
        stop = self.total if task.stop_at is None else task.stop_at
        if stop > self.total:
            length = f"{task.epochs} epochs of {self.per_epoch} batches"
            raise ValueError(f"stop_at is {stop}, but the whole training has {self.total} steps ({length})")
        if start is None:
            return 0, stop
        begin = int(start.metrics["step"]) if task.schedule_from == "start" else 0
        if begin >= stop:
            raise ValueError(
                f"nothing to train: start is at step {begin} and training ends at step {stop}; "
                "`schedule_from: zero` would train its weights anew"
            )
        return begin, stop

    def _after_step(self, progress: Progress) -> None:
        """Looks at the network and ends the epoch where it is time to."""
        step, guard = progress.step, self.task.guard
        if guard is not None and guard.is_due(step, self.stop):
            self.loop.require_finite(progress)
            self._look(progress)
        if progress.stopped is None and (step % self.per_epoch == 0 or step == self.stop):
            self._end_epoch(progress)

    def _look(self, progress: Progress) -> None:
        """Lets the guard see the network, and go back to an earlier one."""
        guard = self.task.guard
        if guard is None or self.watched is None:
            return
        self.loop.require_finite_weights(progress.step)
        accuracy = self._withstood(self.watched, progress)
        if guard.finds_collapse(accuracy, progress, self.model):
            progress.history.append(self.loop.account(progress))
            guard.roll_back(accuracy, progress, self.model)
            place = {"epoch": self.loop.epoch(progress.step), "step": progress.step}
            progress.history.append({**place, **self._validate(progress)})

    def _end_epoch(self, progress: Progress) -> None:
        """Adds the epoch to the history, and ends the training when that has seen enough."""
        step, robust = progress.step, self.task.robust_validation
        self.loop.require_finite(progress)
        entry = self.loop.account(progress)
        if step == self.stop or self.loop.epoch(step) % self.task.validate_every == 0:
            entry |= self._validate(progress)
        progress.history.append(entry)
        if robust is not None and step < self.stop and robust.gives_up(progress):
            progress.stopped = {"why": "patience", "detected_at": step}

    def _validate(self, progress: Progress) -> dict[str, float]:
        """Measures the network as it is, for the history, and keeps it if it is the best so far."""
        score, step = validate(self.model, self.validation, self.loop.device), progress.step
        if not math.isfinite(score.loss):
            raise self.loop.diverged(max(step - 1, 0), f"the validation loss is {score.loss}")
        self.loop.require_finite_weights(step)
        found = {"validation_accuracy": score.accuracy, "validation_loss": score.loss}
        robust = None
        if self.robust is not None:
            robust = found["validation_robust_accuracy"] = self._withstood(self.robust, progress)
        if progress.best is None or (score.accuracy if robust is None else robust) > progress.best.rank:
            weights = weights_to_bytes(self.model)
            progress.best = Best(score.accuracy, score.loss, robust, step, self.loop.epoch(step), weights)
        return found

    def _withstood(self, trial: Trial, progress: Progress) -> float:
        accuracy, images = trial.measure(self.model)
        progress.selection_steps += images
        return accuracy

    def _result(self, progress: Progress) -> Result:
        task, best, last = self.task, progress.best, progress.history[-1]
        assert best is not None  # the last step is always validated
        weights = weights_to_bytes(self.model)
        files = {
            "weights.safetensors": weights,
            "best.safetensors": best.weights,
            "history.jsonl": "".join(json.dumps(entry) + "\n" for entry in progress.history).encode(),
        }
        if self.mask is not None:
            self.mask.audit(self.model)
            files["mask.safetensors"] = self.mask.to_bytes()
        if self.stop < self.total and progress.stopped is None:
            kind = kind_of(type(task.optimizer))
            files[SLOTS] = slots_to_bytes(kind, self.model, self.loop.optimizer, self.loop.scaler)
            if memory := self.loop.memory.state_dict():
                files[MEMORY] = save({name: tensor.cpu().contiguous() for name, tensor in memory.items()})
        step, stopped = progress.step, progress.stopped
        metrics: dict[str, Any] = {
            "step": step,
            "epochs": step / self.per_epoch,
            "last": {
                "accuracy": last["validation_accuracy"],
                "loss": last["validation_loss"],
                "step": step,
                "epoch": self.loop.epoch(step),
            },
            "best": {"accuracy": best.accuracy, "loss": best.loss, "step": best.step, "epoch": best.epoch},
            "sample_steps": self.loop.sample_steps(stopped["detected_at"] if stopped else step),
            "density": self.mask.density if self.mask is not None else 1.0,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "digest": hashlib.sha256(weights).hexdigest(),
        }
        if self.robust is not None:
            metrics["last"]["robust_accuracy"] = last["validation_robust_accuracy"]
            metrics["best"]["robust_accuracy"] = best.robust_accuracy
        if self.robust is not None or self.watched is not None:
            metrics["selection_steps"] = progress.selection_steps
        if stopped is not None:
            metrics["stopped"] = stopped
        return Result(metrics, files)


def _mask(start: Stored | None, mask: Stored | None) -> Mask | None:
    """The mask to train under: the one given, or else the one that `start` was trained under."""
    if mask is None and start is not None and start.metrics["density"] < 1:
        mask = start
    return Mask.from_bytes(mask.read("mask.safetensors")) if mask is not None else None


def _recall(start: Stored, memory: nn.Module) -> None:
    """What the objective remembered at a rewind point; another objective's memories mean nothing to this one."""
    own = {name: tensor.shape for name, tensor in memory.state_dict().items()}
    if not own:
        return
    try:
        found = load_tensors(start.read(MEMORY))
    except KeyError:
        return
    if {name: tensor.shape for name, tensor in found.items()} == own:
        memory.load_state_dict(found)


def _slots(start: Stored) -> bytes:
    try:
        return start.read(SLOTS)
    except KeyError:
        raise ValueError(f"rewind_optimizer: start has no {SLOTS}; only a step with stop_at keeps it") from None
