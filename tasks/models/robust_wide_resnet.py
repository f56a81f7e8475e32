"""Wide residual networks whose stages differ in depth and width."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from tasks.component import kind_of
from tasks.data import Signature
from tasks.models import Architecture
from tasks.models.wide_resnet import wide_residual

Count = Annotated[int, Field(ge=1)]


class RobustWideResNet(Architecture):
    """Wide residual network with a depth and a width for each stage, a narrow last one by default (Huang et al. 2021).

    "Exploring Architectural Ingredients of Adversarially Robust Deep Neural Networks" (arXiv 2110.03825) finds that
    networks trained against attacks gain from less capacity in the last stage. Its WRN-34-R has depths 5, 5, 5 and
    widths 20, 20, 8, and so 320, 640 and 512 channels; the default keeps these proportions of widths at a quarter of
    the size. With equal depths n and equal widths k it is WRN-(6n + 4)-k.
    """

    kind: Literal["robust-wide-resnet"] = "robust-wide-resnet"
    depths: tuple[Count, Count, Count] = (2, 2, 2)
    """Blocks of the three stages, of two convolutions each."""
    widths: tuple[Count, Count, Count] = (5, 5, 2)
    """Widen factors of the three stages: their channels are 16, 32 and 64 times these."""
    dropout: float = Field(default=0, ge=0, lt=1)
    """Share of activations dropped between the two convolutions of a block."""

    def build(self, data: Signature) -> nn.Module:
        """The network for these images, its convolutions drawn as in He et al. 2015.

        Raises:
            ValueError: the images are smaller than 4x4.
        """
        return wide_residual(kind_of(type(self)), data, self.depths, self.widths, self.dropout)
