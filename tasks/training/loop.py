"""The hot loop: steps of gradient descent whose randomness depends on their number alone.

Batches, augmentation, attacks and dropout of step k are drawn from generators seeded by (seed, purpose, epoch or k). A
resumed training has therefore no generator to restore, and one that is rewound to step k meets the very batches and the
very noise that followed step k the first time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import repeat
from typing import Any, cast

import torch
from torch import nn, optim

from tasks.data.batches import Batch, Loader
from tasks.moment import Moment
from tasks.objectives import Objective
from tasks.pruning.mask import Enforcer
from tasks.pruning.sparsifiers import Sparsifier
from tasks.schedules import Schedule
from tasks.seeds import seed_of
from tasks.task import Context
from tasks.training.checkpoint import Progress, pack
from tasks.training.parallel import ALONE, Team

LOOK = 50
"""Steps between two looks at the losses: on a GPU a look waits for all the work that is queued."""


class Diverged(ValueError):
    """Training left the finite numbers; nothing of it is kept."""


@dataclass(frozen=True)
class Loop:
    """One training: what its steps read and what they change."""

    model: nn.Module
    forward: nn.Module
    """The model, or its compiled form."""
    optimizer: optim.Optimizer
    scaler: torch.amp.GradScaler
    enforcer: Enforcer | None
    """Keeps pruned weights dead."""
    loader: Loader
    examples: int
    """In the training split."""
    batch_size: int
    begin: int
    """The first step, counted over the whole schedule."""
    objective: Objective
    memory: nn.Module
    """The objective's."""
    teacher: nn.Module | None
    """What the objective learns from."""
    sparsifier: Sparsifier | None
    sparsity: nn.Module
    """The memory of the sparsifier."""
    learning_rate: float
    schedule: Schedule
    steps: int
    """Length of the schedule."""
    seed: int
    device: torch.device
    half: torch.dtype | None
    """What matrix products are computed in, if not float32."""
    team: Team = ALONE
    """The processes that take each step together."""

    def run(
        self, progress: Progress, stop: int, after_step: Callable[[Progress], None], context: Context
    ) -> bytes | None:
        """Takes the steps up to `stop`, saving its state between any two of them when the context asks for it.

        What follows a step may depend on whether it is the last one. So a training that ends within its schedule leaves
        its state as it is before anything has followed its last step, and one that goes on from there begins with that.

        Args:
            progress: is moved on in place.
            stop: the number of steps at the end, counted over the whole schedule.
            after_step: called after every step; it may end the training by giving the progress a reason to stop.
            context: of the task.

        Returns:
            The state that longer trainings go on from, if it took the last step and the schedule has more of them.

        Raises:
            Diverged: a loss is NaN or infinite.
        """
        begin = progress.step
        noise = torch.Generator(self.device)
        batches = self._batches(begin)
        left = None
        self.model.train()
        while progress.stopped is None and (progress.unseen or progress.step < stop):
            if not progress.unseen:
                progress.losses.append(self._step(progress.step, next(batches), noise))
                progress.step += 1
                progress.unseen = True
                if progress.step % LOOK == 0:
                    self.require_finite(progress)
                    context.progress(progress.step - begin, stop - begin, f"epoch {self.epoch(progress.step)}")
            if progress.step == stop < self.steps:
                left = self.state(progress)
            progress.unseen = False
            after_step(progress)
            if context.should_save():
                context.save(left or self.state(progress))
        return left

    def state(self, progress: Progress) -> bytes:
        """All that is needed to go on from here."""
        return pack(progress, self.model, self.optimizer, self.scaler, self.memories)

    @property
    def memories(self) -> nn.Module:
        """What the objective and the sparsifier remember, together."""
        return nn.ModuleDict({"objective": self.memory, "sparsifier": self.sparsity})

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return self.learning_rate * self.schedule.factor(step, self.steps)

    def epoch(self, step: int) -> int:
        """The epoch, counted from one, that the last of `step` steps belongs to."""
        return -(-step // len(self.loader))

    def sample_steps(self, step: int) -> int:
        """What training has cost after so many steps: examples times forward-backward passes."""
        return (self._seen(step) - self._seen(self.begin)) * self.objective.passes()

    def account(self, progress: Progress) -> dict[str, Any]:
        """The steps since the last entry of the history, as its next one; their losses are forgotten."""
        step = progress.step
        sizes = torch.tensor([self._seen(n + 1) - self._seen(n) for n in range(step - len(progress.losses), step)])
        losses = torch.stack(progress.losses).cpu().double()
        progress.losses = []
        return {
            "epoch": self.epoch(step),
            "step": step,
            "learning_rate": self.rate(step - 1),
            "train_loss": ((losses * sizes).sum() / sizes.sum()).item(),
            "sample_steps": self.sample_steps(step),
        }

    def require_finite(self, progress: Progress) -> None:
        """Checks the losses since the last look.

        Raises:
            Diverged: one is NaN or infinite; names the first.
        """
        recent = torch.stack(progress.losses[-LOOK:])
        broken = (~recent.isfinite()).nonzero()
        if len(broken):
            first = int(broken[0])
            raise self.diverged(progress.step - len(recent) + first, f"the loss is {recent[first].item()}")

    def require_finite_weights(self, step: int) -> None:
        """Checks the network after so many steps.

        Raises:
            Diverged: a parameter or a buffer has NaN or infinite values.
        """
        for name, tensor in self.model.state_dict().items():
            if not tensor.isfinite().all():
                raise self.diverged(max(step - 1, 0), f"'{name}' has NaN or infinite values")

    def diverged(self, step: int, what: str) -> Diverged:
        """The error for training that broke at a step."""
        return Diverged(
            f"training diverged: {what} at step {step} (epoch {step // len(self.loader) + 1}) with learning rate "
            f"{self.rate(step):g}; lower optimizer.learning_rate or raise schedule.warmup"
        )

    def _seen(self, step: int) -> int:
        """Examples seen before a step, counted from the beginning of the schedule, replayed ones each time."""

        def held(batches: int) -> int:
            epochs, position = divmod(batches, len(self.loader))
            return epochs * self.examples + position * self.batch_size

        replays = self.objective.replays
        whole, replayed = divmod(step, replays)
        return (replays - replayed) * held(whole) + replayed * held(whole + 1)

    def _batches(self, step: int) -> Iterator[Batch]:
        """The batch of this step, and of all that follow; replayed ones several times in a row."""
        replays = self.objective.replays
        while True:
            number, replayed = divmod(step, replays)
            epoch, position = divmod(number, len(self.loader))
            for batch in self.loader.epoch(self.seed, epoch, start=position):
                left = replays - replayed
                yield from repeat(batch, left)
                step, replayed = step + left, 0

    def _step(self, step: int, batch: Batch, noise: torch.Generator) -> torch.Tensor:
        images, labels, rows = batch
        rate = self.rate(step)
        for group in self.optimizer.param_groups:
            if group["lr"] != rate:
                group["lr"] = rate
        noise.manual_seed(seed_of(self.seed, "noise", step, *self.team.purpose))
        _seed_layers(seed_of(self.seed, "layers", step, *self.team.purpose), self.device)
        kept = self.enforcer.kept if self.enforcer else {}
        moment = Moment(noise, step, self.steps, rows, self.memory, kept, self.teacher, self.team.summed)
        self.optimizer.zero_grad(set_to_none=True)
        with self._precision():
            loss = self.objective.loss(self.forward, images, labels, moment)
        if self.sparsifier is not None and (penalty := self.sparsifier.penalty(self.model, self.sparsity)) is not None:
            loss = loss + penalty
        torch.autograd.backward(self.scaler.scale(loss))
        share = len(labels) / (self._seen(step + 1) - self._seen(step))
        loss = self.team.average_(self.model, loss.detach(), share)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.enforcer is not None:
            self.enforcer()
        return loss

    def _precision(self) -> AbstractContextManager[object]:
        if self.half is None:
            return nullcontext()
        # Without the cache of casts: one made under `no_grad` by an inner attack would cut the weights' gradient.
        return torch.autocast(self.device.type, self.half, cache_enabled=False)


def compiled(model: nn.Module) -> nn.Module:
    """The model compiled for each shape of batch by itself.

    What was compiled before in this process is forgotten, and no graph serves several shapes: otherwise the kernels,
    and so the bits, would depend on which shapes came first and on what else this process has trained.
    """
    torch.compiler.reset()
    return cast(nn.Module, torch.compile(model, dynamic=False))


@contextmanager
def layers_seeded_apart(device: torch.device) -> Iterator[None]:
    """Leaves the global generators, which dropout and the like draw from, as they were before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _seed_layers(seed: int, device: torch.device) -> None:
    """Seeds the global generators that layers draw from: `torch.manual_seed` would visit every kind of device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)
