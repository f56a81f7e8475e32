"""Signs that examples stand because the attacks failed, not because the network is robust."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.ascent import cross_entropy_gradient
from tasks.attacks.bpda import BPDA
from tasks.attacks.draws import Draws
from tasks.attacks.fgsm import FGSM
from tasks.attacks.fgsm_rs import FGSMRS
from tasks.attacks.pgd import PGD
from tasks.attacks.transfer import Transfer
from tasks.measuring.ladder import scout
from tasks.measuring.outcomes import Outcomes
from tasks.measuring.predictions import images_at
from tasks.measuring.robustness import Siege, decided, seeded_model
from tasks.seeds import seed_of

PROBED = 128
"""Correct examples that the probes look at."""
HUGE = 0.5
"""L-inf radius from which every image in [0, 1] can be made the same grey one."""


def probe(siege: Siege, correct: torch.Tensor, radius: float) -> dict[str, int]:
    """Looks for the usual causes of masked gradients on the first correct examples (Athalye et al. 2018, section 3).

    Args:
        siege: what is attacked and how.
        correct: (N,) bool, the examples that are right without attack.
        radius: at which some examples should stand and others fall.

    Returns:
        how many were `probed`; of those, how many have a gradient that is `zero`; get other logits when asked again
        (`random`); stand under twenty steps at the radius, but fall to one step (`single`) or to steps along the
        gradients of greyer images (`clamped`); stand under twenty steps at radius 0.5 in norm linf (`grey`); and how
        many are of the `commonest` class.
    """
    rows = correct.nonzero().squeeze(1)[:PROBED]
    counts = dict.fromkeys(("probed", "zero", "random", "single", "clamped", "grey", "commonest"), 0)
    if not len(rows):
        return counts
    model, device = siege.model, siege.device
    images, labels = images_at(siege.examples, rows, device), siege.examples.labels[rows].to(device)
    draws = Draws(seed_of(siege.seed, "probe"), siege.indices[rows].to(device))
    norm = siege.attacks[0].norm

    def standing(attack: Attack, epsilon: float) -> torch.Tensor:
        return decided(model, attack.perturb(model, images, labels, epsilon, draws), siege.votes) == labels

    with seeded_model(device, siege.seed, "probe", int(siege.indices[rows[0]])):
        gradient = cross_entropy_gradient(model, labels)(images.clone().requires_grad_())
        counts["probed"] = len(rows)
        leads = gradient.abs() > 0  # what is not a number leads nowhere either
        counts["zero"] = int((~leads).flatten(1).all(dim=1).sum())
        with torch.no_grad():
            first = model(images)
            again = torch.stack([(model(images) - first).abs().amax(dim=1) for _ in range(4)]).amax(dim=0)
        counts["random"] = int((again > 1e-4).sum())
        if norm in PGD.norms:
            left = standing(PGD(norm=norm), radius)
            greyer = Transfer(norm=norm, source="greyer").crafted_on({"greyer": _Greyer(model)})
            counts["single"] = int((left & ~standing(FGSM(norm=norm), radius)).sum())
            counts["clamped"] = int((left & ~standing(greyer, radius)).sum())
        counts["grey"] = int(standing(PGD(), HUGE).sum())
        counts["commonest"] = int(labels.bincount().max())
    return counts


class _Greyer(nn.Module):
    """The same model at half the contrast: black and white pixels have a way to go before anything clamps them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(0.25 + 0.5 * images)
        return logits


def warnings(
    outcomes: Outcomes,
    attacks: Sequence[Attack],
    votes: int,
    probes: Mapping[str, int],
    rejected: Sequence[int],
    descended: bool = False,
    known: Outcomes | None = None,
) -> list[str]:
    """What in a robust evaluation speaks against believing it, in words.

    Args:
        outcomes: of the examples.
        attacks: those of the threat, in its order.
        votes: forward passes that decided.
        probes: from `probe`, added up over shards.
        rejected: for each attack, images that it returned from outside the ball or [0, 1].
        descended: whether the epsilons are the rungs of a ladder, over which attacks are judged once and not at each.
        known: what outcomes were taken over from. Of what it broke well within an epsilon it does not say who else
            would have broken it there, so that is no sign.
    """
    if not attacks:
        return []
    return [
        *_from_probes(probes, attacks, votes),
        *(
            f"{name} returned {count} images outside the ball or [0, 1]; they do not count"
            for name, count in zip(outcomes.threat.attacks, rejected, strict=True)
            if count
        ),
        *(_from_ladder(outcomes, attacks) if descended else _from_curve(outcomes, attacks, known)),
    ]


def _from_probes(probes: Mapping[str, int], attacks: Sequence[Attack], votes: int) -> Iterator[str]:
    probed = probes["probed"]
    if probes["zero"] > probed / 20:
        yield f"the gradient is zero at {probes['zero']} of {probed} images: gradient attacks cannot see this network"
    if probes["clamped"] > probed / 20:
        yield (
            f"gradients of greyer images break {probes['clamped']} of {probed} images that their own do not: the "
            "network clamps or saturates its inputs; attack it through the module that does, with `bpda`"
        )
    averaged = votes > 1 and any(getattr(_inside(attack), "eot", 1) > 1 for attack in attacks)
    if probes["random"] and not averaged:
        yield (
            f"the network answers differently each time on {probes['random']} of {probed} images: attack it with "
            "`eot: 20` and decide with `votes: 20`, or its robustness is luck"
        )
    if probes["grey"] > probes["commonest"]:
        yield (
            f"{probes['grey']} of {probed} images withstand a change of every pixel by {HUGE}, which can make them all "
            f"one grey image, of which {probes['commonest']} at most are right: gradients are masked"
        )
    if probes["single"] > probed / 20:
        yield f"one step breaks {probes['single']} of {probed} images that twenty steps do not: gradients may be masked"


def _from_curve(outcomes: Outcomes, attacks: Sequence[Attack], known: Outcomes | None) -> Iterator[str]:
    """After Athalye et al. 2018, section 3.1, and the flags of AutoAttack."""
    threat = outcomes.threat
    blind, seeing = _who_sees(attacks)
    for epsilon in threat.epsilons:
        standing = left = int(outcomes.standing(epsilon).sum())
        newly = outcomes.broken_at == torch.tensor(epsilon, dtype=torch.float32)
        if known is not None:
            newly &= outcomes.broken_at <= known.broken_at
        for turn in range(len(attacks) - 1, seeing, -1):
            broken = int((newly & (outcomes.broken_by == turn)).sum())
            standing += broken  # what this attack met: what it broke, what later ones broke, what stands
            if blind[turn] and broken > standing / 100:
                yield (
                    f"at epsilon {epsilon:g} {threat.attacks[turn]} broke {broken} of {standing} images that "
                    f"{', '.join(threat.attacks[:turn])} left standing: gradients may be masked"
                )
        yield from _from_grey(outcomes, epsilon, left)


def _from_ladder(outcomes: Outcomes, attacks: Sequence[Attack]) -> Iterator[str]:
    """The same over all rungs: near its own boundary one attack or the other comes a rung further at some images."""
    threat, met = outcomes.threat, int(outcomes.correct.sum())
    blind, seeing = _who_sees(attacks)
    for turn in range(seeing + 1, len(attacks)):
        nearest = int((outcomes.broken_by == turn).sum())
        if blind[turn] and nearest > met / 20:
            yield (
                f"{threat.attacks[turn]} broke {nearest} of {met} images with a smaller change than "
                f"{', '.join(threat.attacks[:turn])}: gradients may be masked"
            )
    for epsilon in threat.epsilons:
        yield from _from_grey(outcomes, epsilon, int(outcomes.standing(epsilon).sum()))


def _who_sees(attacks: Sequence[Attack]) -> tuple[list[bool], int]:
    """Which attacks do not follow gradients over many steps, and the place of the first that does.

    To win over none that sees says nothing.
    """
    blind = [
        not each.gradients or isinstance(_inside(each), FGSM | FGSMRS) or each == scout(each.norm) for each in attacks
    ]
    return blind, blind.index(False) if not all(blind) else len(attacks)


def _from_grey(outcomes: Outcomes, epsilon: float, left: int) -> Iterator[str]:
    commonest = int(outcomes.labels.bincount().max())
    if outcomes.threat.norm == "linf" and epsilon >= HUGE and left > commonest:
        yield (
            f"at epsilon {epsilon:g} all images can be made one grey image, of which {commonest} at most are "
            f"right, but {left} stand: the attacks failed"
        )


def _inside(attack: Attack) -> Attack:
    return attack.attack if isinstance(attack, BPDA) else attack
