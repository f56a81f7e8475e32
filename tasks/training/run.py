"""One run of a training: its parts put together, its epochs watched over, its result."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import nn

from tasks.component import kind_of
from tasks.data import Examples
from tasks.data.batches import Loader
from tasks.models.initialise import initialise
from tasks.models.prunable import prunable
from tasks.models.weights import load_tensors, restore, weights_to_bytes
from tasks.pruning.mask import Enforcer, Mask
from tasks.pruning.sparsifiers import Stage
from tasks.seeds import seed_of
from tasks.task import Context, Result, Stored
from tasks.training.checkpoint import STATE, Best, Progress, Stale, unpack
from tasks.training.guard import Guard
from tasks.training.loop import Loop, compiled
from tasks.training.parallel import Shared, Team
from tasks.training.robust_validation import RobustValidation
from tasks.training.slots import restore_slots, slots_to_bytes
from tasks.training.validation import Trial, radius_of, validate

if TYPE_CHECKING:
    from tasks.training.train import Train

SLOTS = "optimizer.safetensors"
MEMORY = "memory.safetensors"
HALF = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Run:
    """One run of a `Train`."""

    def __init__(self, task: Train, device: torch.device, inputs: Mapping[str, Stored]) -> None:
        start = inputs.get("start")
        self.task = task
        self.team = Team(task.world_size, device)
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
            part=(self.team.rank, self.team.size),
        )
        self.per_epoch = len(loader)
        self.total = task.epochs * self.per_epoch
        self.begin, self.stop = self._span(start)
        self.mask = _mask(start, inputs.get("mask"))
        self.model = initialise(task.architecture, task.data.signature(), task.init_seed, task.initialiser)
        if start is not None:
            restore(self.model, start.read("weights.safetensors"))
        if self.mask is None and task.sparsifier is not None and task.sparsifier.prunes:
            self.mask = Mask.ones_like(prunable(self.model))
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
            teacher=self._teacher(inputs["teacher"]) if "teacher" in inputs else None,
            sparsifier=task.sparsifier,
            sparsity=task.sparsifier.memory(self.model, self.mask).to(device) if task.sparsifier else nn.Module(),
            learning_rate=task.optimizer.learning_rate,
            schedule=task.schedule,
            steps=self.total,
            seed=task.seed,
            device=device,
            half=HALF[task.precision],
            team=self.team,
        )
        if start is not None and task.rewind_optimizer:
            restore_slots(_slots(start), kind_of(type(task.optimizer)), self.model, optimizer, self.loop.scaler)
        if start is not None and task.schedule_from == "start":
            _recall(start, self.loop.memory)
        self.robust = self._trial("robust-validation", task.robust_validation, self.validation)
        self.watched = self._trial("guard", task.guard, examples)
        self.given = start is not None

    def _teacher(self, trained: Stored) -> nn.Module:
        teacher = initialise(self.task.architecture, self.task.data.signature(), 0)
        restore(teacher, trained.read("weights.safetensors"))
        return teacher.to(next(self.model.parameters()).device).eval().requires_grad_(False)

    def _trial(self, name: str, watch: RobustValidation | Guard | None, examples: Examples) -> Trial | None:
        if watch is None:
            return None
        epsilon = radius_of(watch.attack, watch.epsilon, self.task.objective)
        seed = seed_of(self.task.seed, name)
        return Trial(watch.attack, epsilon, examples, watch.examples, self.model, self.loop.device, seed)

    def run(self, context: Context) -> Result:
        """Trains from where an earlier attempt was left, or from the beginning; see `Train.run`."""
        loop, context = self.loop, Shared(context, self.team)
        known = self._known(context.saved())
        progress = known or Progress(self.begin)
        if progress.mask is not None:
            self._prune(progress.mask)
        if self.stop == 0:
            progress.history = [{"epoch": 0, "step": 0, **self._validate(progress)}]
        if known is None and self.given:
            self._look(progress)
        left = loop.run(progress, self.stop, self._after_step, context)
        result = self._result(progress)
        if 0 < self.stop < self.total:
            result.files[STATE] = left or loop.state(progress)
        return result

    def _known(self, saved: bytes | None) -> Progress | None:
        """What an earlier attempt or a shorter training came to, its state put in place."""
        if saved is None:
            return None
        try:
            return unpack(saved, self.model, self.loop.optimizer, self.loop.scaler, self.loop.memories)
        except Stale:
            return None

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
        if progress.stopped is not None:
            return
        self._sparsify(progress)
        if step % self.per_epoch == 0 or step == self.stop or progress.stopped is not None:
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

    def _sparsify(self, progress: Progress) -> None:
        """Lets the sparsifier change the mask, or end the training."""
        task, step = self.task, progress.step
        if task.sparsifier is None:
            return
        stage = Stage(step, self.total, self.per_epoch, self.mask)
        change = task.sparsifier.after_step(self.model, self.loop.sparsity, stage)
        if change is not None and change.mask is not None:
            progress.mask, progress.best = change.mask, None  # a denser network is none to choose
            self._prune(change.mask)
        if change is not None and change.stop is not None:
            progress.stopped = {**change.stop, "detected_at": step}

    def _prune(self, mask: Mask) -> None:
        """From now on trains under this mask."""
        assert self.loop.enforcer is not None  # a sparsifier that prunes begins with a mask
        self.mask = mask
        self.loop.enforcer.renew(mask)
        self.loop.enforcer()

    def _end_epoch(self, progress: Progress) -> None:
        """Adds the epoch to the history, and ends the training when that has seen enough."""
        step, robust = progress.step, self.task.robust_validation
        self.loop.require_finite(progress)
        entry = self.loop.account(progress)
        if step == self.stop or progress.stopped or self.loop.epoch(step) % self.task.validate_every == 0:
            entry |= self._validate(progress)
        progress.history.append(entry)
        if robust is not None and step < self.stop and progress.stopped is None and robust.gives_up(progress):
            progress.stopped = {"why": "patience", "detected_at": step}
        self.team.require_equal(lambda: self.loop.state(progress), step)

    def _validate(self, progress: Progress) -> dict[str, float]:
        """Measures the network as it is, for the history, and keeps it if it is the best so far."""
        score = self.team.first(lambda: validate(self.model, self.validation, self.loop.device))
        step = progress.step
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
        accuracy, images = self.team.first(lambda: trial.measure(self.model))
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
