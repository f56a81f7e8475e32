"""AutoAttack runs the published members in turn, and what falls is what any of them breaks."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tasks.attacks import Attack
from tasks.attacks.apgd import APGD
from tasks.attacks.apgd_t import APGDT
from tasks.attacks.autoattack import AutoAttack
from tasks.attacks.ball import Norm, ball
from tasks.attacks.draws import Draws
from tasks.attacks.fab_t import FABT
from tasks.attacks.pgd import PGD
from tasks.attacks.square import Square
from tests.tasks import digits

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_standard_members_are_those_of_the_authors() -> None:
    def described(attack: AutoAttack) -> list[dict[str, object]]:
        return [part.model_dump() for part in attack.parts()]

    for norm in ("linf", "l2"):
        apgd, targeted, fab, square = described(AutoAttack(norm=norm))
        assert (
            apgd.items() >= {"kind": "apgd", "loss": "ce", "steps": 100, "restarts": 1, "eot": 1, "rho": 0.75}.items()
        )
        assert targeted.items() >= {"kind": "apgd-t", "steps": 100, "targets": 9, "restarts": 1}.items()
        assert fab.items() >= {"kind": "fab-t", "steps": 100, "targets": 9, "restarts": 1}.items()
        assert fab.items() >= {"alpha_max": 0.1, "eta": 1.05, "beta": 0.9}.items()
        assert square.items() >= {"kind": "square", "queries": 5000, "share": 0.8, "restarts": 1}.items()
        assert {part["norm"] for part in (apgd, targeted, fab, square)} == {norm}
    apgd, targeted, fab, square = described(AutoAttack(norm="l1"))
    assert (apgd["restarts"], targeted["targets"], fab["targets"], square["queries"]) == (5, 5, 9, 5000)
    assert {part["norm"] for part in (apgd, targeted, fab, square)} == {"l1"}


def test_the_other_suites_are_those_of_the_authors() -> None:
    plus = [part.model_dump(include={"kind", "loss", "restarts"}) for part in AutoAttack(suite="plus").parts()]
    assert plus == [
        {"kind": "apgd", "loss": "ce", "restarts": 5},
        {"kind": "apgd", "loss": "dlr", "restarts": 5},
        {"kind": "fab", "restarts": 5},
        {"kind": "square", "restarts": 1},
        {"kind": "apgd-t", "restarts": 1},
        {"kind": "fab-t", "restarts": 1},
    ]
    random = [part.model_dump(include={"kind", "loss", "restarts", "eot"}) for part in AutoAttack(suite="rand").parts()]
    assert random == [
        {"kind": "apgd", "loss": "ce", "restarts": 1, "eot": 20},
        {"kind": "apgd", "loss": "dlr", "restarts": 1, "eot": 20},
    ]


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.08), ("l2", 1.0), ("l1", 5.0)])
def test_what_falls_is_what_any_part_breaks_alone(norm: Norm, epsilon: float, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)
    model = digits.net("standard")
    images, labels, draws = digits.right(model, 40)
    attack = AutoAttack(norm=norm)
    perturbed = attack.perturb(model, images, labels, epsilon, draws)
    alone = [
        model(part.perturb(model, images, labels, epsilon, draws.under("part", turn))).argmax(dim=1) != labels
        for turn, part in enumerate(attack.parts())
    ]
    fallen = model(perturbed).argmax(dim=1) != labels
    assert torch.equal(fallen, torch.stack(alone).any(dim=0))
    assert 4 < fallen.sum() < 36
    assert ball(norm, images, torch.full((len(images),), epsilon)).contains(perturbed).all()
    assert not perturbed.requires_grad


def test_each_part_meets_only_what_still_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[torch.Tensor] = []

    def breaking(count: int) -> object:
        def search(self: Attack, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, *_: object) -> object:
            met.append(images[:, 0, 0, 0].clone())
            changed = images.clone()
            changed[:count, 0, 0, 0] += 0.5
            return changed

        return search

    for part, count in ((APGD, 3), (APGDT, 0), (FABT, 5), (Square, 2)):
        monkeypatch.setattr(part, "search", breaking(count))
    images = torch.arange(10).view(10, 1, 1, 1) / 100 * torch.ones(10, 1, 2, 2)

    class Brightness(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.full((len(images),), 0.4), images[:, 0, 0, 0]], dim=1)

    labels = torch.zeros(10, dtype=torch.int64)
    perturbed = AutoAttack().perturb(Brightness(), images, labels, 0.5, Draws(0, torch.arange(10)))
    assert [len(each) for each in met] == [10, 7, 7, 2]
    assert torch.equal(met[1], images[3:, 0, 0, 0])
    assert (perturbed[:, 0, 0, 0] > 0.4).all()
    met.clear()
    monkeypatch.setattr(APGD, "search", breaking(10))
    AutoAttack().perturb(Brightness(), images, labels, 0.5, Draws(0, torch.arange(10)))
    assert len(met) == 1


def test_outcomes_do_not_depend_on_company(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)
    model = digits.net("standard")
    images, labels, draws = digits.right(model, 40)
    together = AutoAttack().perturb(model, images, labels, 0.08, draws)
    stands = model(together).argmax(dim=1) == labels
    assert 4 < stands.sum() < 36
    some = torch.cat([stands.nonzero()[:6], (~stands).nonzero()[:4]]).squeeze(1).flip(0)
    apart = AutoAttack().perturb(model, images[some], labels[some], 0.08, draws.at(some))
    assert torch.equal(apart, together[some])


def test_it_leaves_no_more_standing_than_pgd_and_sees_through_the_long_step(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)
    model = digits.net("fgsm-rs")
    images, labels, draws = digits.right(model, 60)
    found, whole = (
        digits.accuracy(model, attack.perturb(model, images, labels, digits.EPSILON["fgsm-rs"], draws), labels)
        for attack in (PGD(steps=40, relative_step=1 / 30), AutoAttack())
    )
    assert whole < found - 0.1


def test_too_few_classes_are_told_by_every_part_concerned() -> None:
    assert list(AutoAttack().fallbacks(10)) == []
    lines = list(AutoAttack().fallbacks(2))
    assert any(line.startswith("apgd-t") for line in lines)
    assert any(line.startswith("fab-t") for line in lines)
    assert any("DLR" in line for line in AutoAttack(suite="rand").fallbacks(2))


@pytest.mark.parametrize("fields", [{"norm": "l0"}, {"suite": "custom"}, {"version": "plus"}], ids=str)
def test_values_out_of_bounds_do_not_validate(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AutoAttack.model_validate(fields)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "norm", "epsilon"),
    [("standard", "linf", 0.1), ("fgsm-rs", "linf", 0.2), ("pgd", "linf", 0.1), ("standard", "l2", 1.0)],
)
def test_it_agrees_with_the_reference(name: digits.Name, norm: Norm, epsilon: float) -> None:
    reference = pytest.importorskip("pyautoattack")
    model = digits.net(name)
    images, labels, draws = digits.right(model, 150)
    own = digits.accuracy(model, AutoAttack(norm=norm).perturb(model, images, labels, epsilon, draws), labels)
    with torch.random.fork_rng():
        evaluation = reference.AutoAttack(model, norm=norm.capitalize(), eps=epsilon, seed=0, version="standard")
        theirs = digits.accuracy(model, evaluation.run_standard_evaluation(images, labels)[0], labels)
    assert own <= theirs + 0.002 + 1 / len(images)
    assert own >= theirs - 0.006 - 2 / len(images)


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the parts short, so that tests of how they work together are."""
    whole = AutoAttack.parts
    fewer = {APGD: {"steps": 20}, APGDT: {"steps": 20, "targets": 2}, FABT: {"steps": 10, "targets": 2}}

    def parts(self: AutoAttack) -> tuple[Attack, ...]:
        return tuple(part.model_copy(update=fewer.get(type(part), {"queries": 150})) for part in whole(self))

    monkeypatch.setattr(AutoAttack, "parts", parts)
