"""Learning from a trained network as well as from the labels."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional as F

from tasks.component import kind_of
from tasks.moment import Moment
from tasks.objectives import Objective
from tasks.objectives.adversarial import Adversarial, Attacked
from tasks.objectives.around import Around
from tasks.objectives.standard import Standard


class Distilled(Around):
    """Distillation from a dense teacher (Hinton et al. 2015); robust when attacked (Goldblum et al. 2020).

    `(1 - alpha) * inside + alpha * T^2 * KL(teacher(x) / T || student(x') / T)`: the teacher answers the images as they
    are, the student the ones that the objective inside has perturbed, if it attacks. The teacher is the input `teacher`
    of the training.
    """

    kind: Literal["distilled"] = "distilled"
    objective: Objective = Standard()
    """The loss on the labels, and what attacks the images: `standard`, or an adversarial objective."""
    alpha: float = Field(default=0.5, gt=0, le=1)
    """Weight of the teacher against the labels."""
    temperature: float = Field(default=1.0, gt=0)
    """What logits are divided by: the higher, the more the teacher says of classes that it finds unlikely."""

    @model_validator(mode="after")
    def _logits_of_the_objective_are_known(self) -> Self:
        inside = self.objective
        attacks_first = isinstance(inside, Adversarial) and inside.passes() >= 2 and inside.replays == 1
        if not attacks_first and not isinstance(inside, Standard):
            kind = kind_of(type(inside))
            raise ValueError(
                f"distilled is put around `standard`, or around an objective that attacks images and then takes the "
                f"loss; {kind} does neither"
            )
        return self

    @property
    def taught(self) -> bool:
        """It is."""
        return True

    def passes(self) -> int:
        """Those of the objective inside; the teacher's go no way back and are not counted."""
        inside = self.objective
        if isinstance(inside, Adversarial):
            return inside.attack_passes() + inside.outer_passes()
        return inside.passes()

    def loss(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, moment: Moment) -> torch.Tensor:
        """The weighted mean of both.

        Raises:
            ValueError: there is no teacher.
        """
        if moment.teacher is None:
            raise ValueError("distilled learns from a teacher, and there is none")
        with torch.no_grad():
            taught = F.log_softmax(moment.teacher(images) / self.temperature, dim=1)
        found = self._inside(model, images, labels, moment)
        own = F.log_softmax(found.logits / self.temperature, dim=1)
        distance = F.kl_div(own, taught, log_target=True, reduction="batchmean") * self.temperature**2
        return (1 - self.alpha) * found.loss + self.alpha * distance

    def _inside(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, moment: Moment) -> Attacked:
        """The loss on the labels, and the logits that it was taken of."""
        inside = self.objective
        if isinstance(inside, Adversarial):
            return inside.attacked(model, images, labels, moment)
        assert isinstance(inside, Standard)  # by validation
        logits = model(images)
        return Attacked(F.cross_entropy(logits, labels, label_smoothing=inside.label_smoothing), logits)
