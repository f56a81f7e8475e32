"""Signs that examples stand because the attacks failed, not because the network is robust."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.ascent import cross_entropy_gradient
from tasks.attacks.fgsm import FGSM
from tasks.data import Examples
from tasks.measuring.predictions import BLOCK, images_at
from tasks.measuring.robustness import Cascade

ANY_IMAGE = 0.5
"""L-inf radius from which every image in [0, 1] can be made the same grey one."""


def blind_spots(model: nn.Module, examples: Examples, correct: torch.Tensor, device: torch.device) -> Iterator[str]:
    """A warning if the loss has no gradient at more than a twentieth of some correct examples.

    No ascent can start there: Athalye et al. 2018, section 3, call it shattered or vanishing gradients.
    """
    probed = correct.nonzero().squeeze(1)[:BLOCK]
    if not len(probed):
        return
    images, labels = images_at(examples, probed, device), examples.labels[probed].to(device)
    gradient = cross_entropy_gradient(model, labels)(images.requires_grad_())
    zero = int((gradient == 0).flatten(1).all(dim=1).sum())
    if zero > len(probed) / 20:
        yield f"the gradient is zero at {zero} of {len(probed)} images: gradient attacks cannot see this network"


def failures(
    cascade: Cascade, attacks: Sequence[Attack], names: Sequence[str], epsilons: Sequence[float], labels: torch.Tensor
) -> Iterator[str]:
    """Warnings from the outcome of a robust evaluation (Athalye et al. 2018, section 3.1)."""
    for name, rejected in zip(names, cascade.rejected.tolist(), strict=True):
        if rejected:
            yield f"{name} returned {rejected} images outside the ball or [0, 1]; they do not count"
    commonest = int(labels.bincount().max())
    for level, epsilon in enumerate(epsilons):
        standing = cascade.standing(level)
        for turn in range(len(attacks) - 1, 0, -1):
            broken = cascade.broken_by(level, turn)
            standing += broken  # what this attack met: what it broke, what later ones broke, what stands
            if isinstance(attacks[turn], FGSM) and broken > standing / 100:
                yield (
                    f"at epsilon {epsilon} one step of {names[turn]} broke {broken} of {standing} images that "
                    f"{', '.join(names[:turn])} left standing: gradients may be masked"
                )
        if attacks[0].norm == "linf" and epsilon >= ANY_IMAGE and (standing := cascade.standing(level)) > commonest:
            yield (
                f"at epsilon {epsilon} all images can be made one grey image, of which {commonest} at most are right, "
                f"but {standing} stand: the attacks failed"
            )
