"""The outcomes of one network at single radii, joined to its curve over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from tasks.measuring.outcomes import Outcomes, Threat


def spectrum(cells: Sequence[Outcomes]) -> Outcomes:
    """The outcomes over the radii of all cells, rising: what is broken at a radius is broken at every larger one.

    So accuracy and both ends of its interval fall along the curve, also where an attack found at a small radius what it
    missed at a larger one.

    Args:
        cells: of the same examples and attacks, each at one epsilon of its own, in any order.

    Raises:
        ValueError: there are none, or they do not belong together.
    """
    if not cells:
        raise ValueError("there are no outcomes to join to a spectrum")
    first = cells[0]
    for cell in cells:
        _require_kin(first, cell)
    rising = sorted(cells, key=lambda cell: cell.threat.epsilons)
    epsilons = tuple(cell.threat.epsilons[0] for cell in rising)
    for smaller, larger in pairwise(epsilons):
        if smaller == larger:
            raise ValueError(f"epsilon {larger:g} is in more than one of the outcomes to join to a spectrum")
    broken = torch.stack([cell.broken_at.isfinite() for cell in rising] + [torch.ones_like(first.correct)])
    level = broken.int().argmax(dim=0)  # the first cell that broke it
    by = torch.stack([*(cell.broken_by for cell in rising), torch.full_like(first.broken_by, -1)])
    return replace(
        first,
        threat=Threat(first.threat.norm, epsilons, first.threat.attacks),
        broken_at=torch.where(first.correct, torch.tensor([*epsilons, torch.inf])[level], 0.0),
        broken_by=by.gather(0, level.unsqueeze(0)).squeeze(0),
        distances=torch.stack([cell.distances for cell in rising]).amin(dim=0),
    )


def _require_kin(first: Outcomes, cell: Outcomes) -> None:
    """Refuses outcomes of other examples, networks or attacks.

    Raises:
        ValueError: says what differs.
    """
    if len(cell.threat.epsilons) != 1:
        raise ValueError(f"a spectrum joins outcomes at one epsilon each, not at {len(cell.threat.epsilons)}")
    at = f"the outcomes at epsilon {cell.threat.epsilons[0]:g}"
    if not torch.equal(first.indices, cell.indices) or not torch.equal(first.labels, cell.labels):
        raise ValueError(f"{at} are of other examples: only the same, in the same order, join to a spectrum")
    if not torch.equal(first.predictions, cell.predictions):
        raise ValueError(f"{at} are of another network: it answers otherwise without attack")
    if cell.threat.norm != first.threat.norm:
        raise ValueError(f"{at} are in norm {cell.threat.norm}, others in {first.threat.norm}: a spectrum has one")
    if cell.threat.attacks != first.threat.attacks:
        attacks = " and ".join(", ".join(each.threat.attacks) for each in (first, cell))
        raise ValueError(f"{at} come from other attacks: {attacks}")
