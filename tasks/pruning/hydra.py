"""HYDRA: which weights to keep is learned, while the weights themselves stand still."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from typing import Any, Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import nn

from tasks.component import kind_of
from tasks.data import Dataset, Examples
from tasks.data.augmentation import Augmentation
from tasks.data.augmentation.none import Unchanged
from tasks.data.batches import Loader
from tasks.device import device_of, settle
from tasks.models import Architecture
from tasks.models.initialise import initialise
from tasks.models.prunable import output_layer, prunable
from tasks.models.weights import restore, weights_to_bytes
from tasks.objectives import Objective
from tasks.objectives.standard import Standard
from tasks.optimizers import Optimizer
from tasks.pruning.mask import Mask, highest
from tasks.pruning.prune import Prune
from tasks.schedules import Schedule
from tasks.schedules.constant import Constant
from tasks.task import Context, Result, Stored, Task
from tasks.training.checkpoint import Progress, unpack
from tasks.training.loop import Loop, layers_seeded_apart
from tasks.training.validation import validate


class Hydra(Task):
    """HYDRA, learning which weights to keep under the objective of the training (Sehwag et al. 2020, section 3).

    Every weight w of a kernel has a score, at first sqrt(6 / fan-in) w / max |w|, and each kernel keeps the same share
    of its weights, those with the largest |score|: the beginning is magnitude pruning to a uniform density. A |score|
    follows the gradient of the weight that the network sees in its place (w or zero) times w, whether it is kept or
    not: it grows where keeping the weight lowers the loss. Among equal scores the earlier position stays.

    Weights, biases and norms stand still: the network is in evaluation mode throughout, with the statistics that it
    came with, and without dropout.

    Takes `trained`, a dense training. A `Train` that starts from the result is the fine-tuning under the mask.
    """

    kind: Literal["hydra"] = "hydra"
    data: Dataset
    """What the network was trained on."""
    architecture: Architecture
    """The network."""
    density: float = Field(gt=0, lt=1)
    """Share of all prunable weights that is kept, in each kernel alike."""
    objective: Objective = Standard()
    """What the choice of weights minimises; the adversarial one of the training for a robust network."""
    optimizer: Optimizer
    """How scores follow their gradients."""
    schedule: Schedule = Constant()
    """Its learning rate over the epochs."""
    epochs: int = Field(ge=1)
    """Passes over the training examples."""
    batch_size: int = Field(default=128, ge=1)
    """Examples a step; the last batch of an epoch may be smaller."""
    augmentation: Augmentation = Unchanged()
    """Random changes to training images."""
    seed: int = Field(default=0, ge=0)
    """Of data order, augmentation and attack noise."""

    @model_validator(mode="after")
    def _learns_by_itself(self) -> Self:
        if self.objective.taught:
            raise ValueError(f"objective: {kind_of(type(self.objective))} learns from a teacher, and hydra has none")
        if self.objective.moves_weights:
            raise ValueError(
                f"objective: {kind_of(type(self.objective))} moves weights, and those of hydra stand still; give the "
                "objective inside it"
            )
        return self

    def run(self, context: Context, **inputs: Stored) -> Result:
        """Learns the scores of the network `trained`.

        Args:
            context: of the step; the search goes on from what an earlier attempt saved, to the same bits.
            inputs: `trained`, a dense training.

        Returns:
            Metrics: what a training reports of its network (`step`, that of `trained`, `density`, `parameters`,
            `digest`), `last` {accuracy, loss, step, epoch} on validation data, `sample_steps` (examples seen times
            forward-backward passes), `layers` (density by kernel) and `moved` (share of the kept weights that magnitude
            would not have kept).
            Files: `mask.safetensors`; `weights.safetensors`, those of `trained` under the mask, bit for bit, which are
            `best.safetensors` too; `history.jsonl`.

        Raises:
            Diverged: the loss or a score is NaN or infinite.
            ValueError: fields and inputs do not fit, the network is sparse already, or a kernel would be left empty.
        """
        settle(self.threads)
        device = device_of(self.gpus)
        with layers_seeded_apart(device):
            return _Search(self, device, inputs["trained"]).run(context)


class _Scored(nn.Module):
    """A network at rest whose kernels hold what their scores select.

    The gradient that a kernel receives becomes that of its scores.
    """

    def __init__(self, network: nn.Module, density: float) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        kernels = prunable(network)
        shapes = {name: kernel.shape for name, kernel in kernels.items()}
        sizes = {name: shape.numel() for name, shape in shapes.items()}
        quotas = Prune(density=density, scope="uniform").quotas(shapes, sizes, output_layer(network))
        self.quota = {names[0]: stay for names, stay in quotas}
        for name, stay in self.quota.items():
            if not stay:
                raise ValueError(f"density {density} leaves none of the {sizes[name]} weights of '{name}'")
        self.weights = {name: kernels[name].detach().clone() for name in self.quota}
        self.scores = nn.ParameterList(_first_scores(weight) for weight in self.weights.values())
        for (name, weight), scores in zip(self.weights.items(), self.scores, strict=True):
            kernel: Any = kernels[name].requires_grad_(True)  # PyTorch declares no types for the hook
            kernel.register_post_accumulate_grad_hook(_passed_on(weight, scores))
        self.select()

    def train(self, mode: bool = True) -> Self:
        """Nothing changes: the network is at rest."""
        return self

    def select(self) -> None:
        """Puts into the network what the scores select."""
        kernels = prunable(self.network)
        for (name, weight), kept in zip(self.weights.items(), self._kept(), strict=True):
            kernels[name].detach().copy_(weight.masked_fill(~kept, 0))

    def mask(self) -> Mask:
        """What is selected."""
        return Mask(dict(zip(self.weights, self._kept(), strict=True)))

    def _kept(self) -> list[torch.Tensor]:
        return [
            highest(scores.detach().abs().flatten(), stay).view(scores.shape)
            for scores, stay in zip(self.scores, self.quota.values(), strict=True)
        ]


class _Search:
    """One run of a `Hydra`."""

    def __init__(self, task: Hydra, device: torch.device, trained: Stored) -> None:
        if trained.metrics["density"] < 1:
            raise ValueError(
                f"hydra chooses among all weights, but trained has a density of {trained.metrics['density']:g} already"
            )
        self.task = task
        self.given = trained
        validation = task.data.load("validation")
        self.validation = Examples(validation.images.to(device), validation.labels.to(device))
        examples = task.data.load("train")
        loader = Loader(
            examples,
            batch_size=task.batch_size,
            device=device,
            augmentation=task.augmentation,
            channels_last=False,
        )
        network = initialise(task.architecture, task.data.signature(), 0)
        restore(network, trained.read("weights.safetensors"))
        self.scored = _Scored(network.to(device), task.density)
        self.magnitude = self.scored.mask()
        self.stop = task.epochs * len(loader)
        self.loop = Loop(
            model=self.scored,
            forward=network,
            optimizer=task.optimizer.build(self.scored.scores),
            scaler=torch.amp.GradScaler(device.type, enabled=False),
            enforcer=None,
            loader=loader,
            examples=len(examples),
            batch_size=task.batch_size,
            begin=0,
            objective=task.objective,
            memory=task.objective.memory(task.data.signature(), len(examples), task.batch_size).to(device),
            teacher=None,
            sparsifier=None,
            sparsity=nn.Module(),
            learning_rate=task.optimizer.learning_rate,
            schedule=task.schedule,
            steps=self.stop,
            seed=task.seed,
            device=device,
            half=None,
        )

    def run(self, context: Context) -> Result:
        """Searches from where an earlier attempt was left, or from the beginning; see `Hydra.run`."""
        loop, saved = self.loop, context.saved()
        progress = Progress(0)
        if saved is not None:
            progress = unpack(saved, self.scored, loop.optimizer, loop.scaler, loop.memories)
        loop.run(progress, self.stop, self._after_step, context)
        return self._result(progress)

    def _after_step(self, progress: Progress) -> None:
        self.scored.select()
        if progress.step % len(self.loop.loader):
            return
        self.loop.require_finite(progress)
        self.loop.require_finite_weights(progress.step)
        score = validate(self.scored.network, self.validation, self.loop.device)
        if not math.isfinite(score.loss):
            raise self.loop.diverged(progress.step - 1, f"the validation loss is {score.loss}")
        found = {"validation_accuracy": score.accuracy, "validation_loss": score.loss}
        progress.history.append(self.loop.account(progress) | found)

    def _result(self, progress: Progress) -> Result:
        network, mask, last = self.scored.network, self.scored.mask(), progress.history[-1]
        mask.audit(network)
        weights = weights_to_bytes(network)
        metrics: dict[str, Any] = {
            "step": self.given.metrics["step"],
            "last": {
                "accuracy": last["validation_accuracy"],
                "loss": last["validation_loss"],
                "step": progress.step,
                "epoch": last["epoch"],
            },
            "sample_steps": last["sample_steps"],
            "density": mask.density,
            "layers": mask.layer_densities,
            "moved": 1 - (mask & self.magnitude).nnz / mask.nnz,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "digest": hashlib.sha256(weights).hexdigest(),
        }
        files = {
            "mask.safetensors": mask.to_bytes(),
            "weights.safetensors": weights,
            "best.safetensors": weights,
            "history.jsonl": "".join(json.dumps(entry) + "\n" for entry in progress.history).encode(),
        }
        return Result(metrics, files)


def _first_scores(weight: torch.Tensor) -> nn.Parameter:
    """Scores in the order of magnitude."""
    return nn.Parameter(math.sqrt(6 / weight[0].numel()) * weight / weight.abs().max())


def _passed_on(weight: torch.Tensor, scores: nn.Parameter) -> Callable[[torch.Tensor], None]:
    """Gives the gradient of a kernel, once it is there, to the scores: straight through the selection."""

    def pass_on(kernel: torch.Tensor) -> None:
        scores.grad = cast(torch.Tensor, kernel.grad) * weight * scores.detach().sign()
        kernel.grad = None

    return pass_on
