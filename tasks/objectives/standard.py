"""The objective of ordinary training."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from tasks.moment import Moment
from tasks.objectives import Objective


class Standard(Objective):
    """Cross-entropy on the images as they are; label smoothing after Szegedy et al. 2016, section 7."""

    kind: Literal["standard"] = "standard"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Probability mass spread evenly over all classes."""

    def loss(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, moment: Moment) -> torch.Tensor:
        """The mean cross-entropy."""
        return F.cross_entropy(model(images), labels, label_smoothing=self.label_smoothing)
