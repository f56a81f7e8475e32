"""Adversarial weight perturbation: the step of the paper, weights that are never touched, masks that hold."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from tasks.budgets import Budget
from tasks.component import kind_of, members
from tasks.models.prunable import prunable
from tasks.models.weights import load_tensors
from tasks.moment import Moment
from tasks.objectives import Objective
from tasks.objectives.adversarial import Adversarial, Attacked
from tasks.objectives.awp import AWP
from tasks.objectives.fgsm_rs import FGSMRS
from tasks.objectives.pgd import PGD
from tasks.objectives.standard import Standard
from tasks.objectives.trades import TRADES
from tasks.pruning.mask import Mask
from tasks.seeds import generator
from tests.tasks.attack_toys import EPSILON, SmallNet, TwoFeatures, pixels
from tests.tasks.training_toys import Interrupted, Tiny, Watch, half_mask, toy, trained

pytestmark = pytest.mark.usefixtures("one_thread")


class Weighed(PGD):
    """A loss on both kinds of images, each example with its own weight, as in MART."""

    kind: Literal["test-weighed"] = "test-weighed"  # type: ignore[assignment]

    def outer(
        self, model: nn.Module, images: torch.Tensor, perturbed: torch.Tensor, labels: torch.Tensor, moment: Moment
    ) -> Attacked:
        attacked, clean = model(perturbed), model(images)
        doubt = 1 - clean.softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
        apart = F.kl_div(attacked.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
        return Attacked(F.cross_entropy(attacked, labels) + 5 * (doubt * apart).mean(), attacked)


class Listening(Budget):
    """Half of the radius; notes what it is told."""

    kind: Literal["test-listening"] = "test-listening"

    def memory(self, examples: int) -> nn.Module:
        memory = nn.Module()
        memory.register_buffer("told", torch.zeros(()))
        return memory

    def radii(self, epsilon: float, count: int, moment: Moment, memory: nn.Module) -> float:
        return epsilon / 2

    def learn(self, logits: torch.Tensor, labels: torch.Tensor, moment: Moment, memory: nn.Module) -> None:
        memory.logits = logits
        memory.told += 1


INSIDE: list[Adversarial] = [
    PGD(epsilon=EPSILON, steps=3),
    PGD(epsilon=0.5, steps=3, norm="l2"),
    TRADES(epsilon=EPSILON, steps=3),
    FGSMRS(epsilon=EPSILON),
    Weighed(epsilon=EPSILON, steps=3),
]


def named(value: Any) -> str | None:
    return f"{kind_of(type(value))}-{value.norm}" if isinstance(value, Adversarial) else None


def fresh() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SmallNet().build(TwoFeatures().signature()).train()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = pixels()
    return images[:64], labels[:64]


@contextmanager
def in_doubles() -> Iterator[None]:
    """What is compared with a formula is computed in float64."""
    images, labels = batch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.batch", lambda: (images.double(), labels))
        yield


def moment(**fields: Any) -> Moment:
    return Moment(generator("awp"), **fields)


def gradients(objective: Objective, model: nn.Module, at: Moment) -> tuple[torch.Tensor, list[torch.Tensor]]:
    loss = objective.loss(model, *batch(), at)
    return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters())))


def masked(model: nn.Module) -> dict[str, torch.Tensor]:
    """Prunes a model at random and returns what it keeps."""
    chance = generator("kept")
    mask = Mask({name: torch.rand(kernel.shape, generator=chance) < 0.4 for name, kernel in prunable(model).items()})
    mask.apply_(model)
    return dict(mask)


def by_the_book(
    objective: Adversarial, model: nn.Module, gamma: float, kept: dict[str, torch.Tensor], rate: float = 0.01
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The authors' algorithm: a proxy network, a step of plain descent on the negative loss, and a perturbed copy."""
    images, labels = batch()
    at = moment()
    perturbed = objective.perturb(model, images, labels, objective.epsilon, at)
    drawn = at.generator.get_state()
    proxy, worst = copy.deepcopy(model), copy.deepcopy(model)
    optimizer = torch.optim.SGD(proxy.parameters(), lr=rate)
    (-objective.outer(proxy, images, perturbed, labels, at).loss).backward()
    optimizer.step()
    with torch.no_grad():
        for (name, old), new, target in zip(
            model.named_parameters(), proxy.parameters(), worst.parameters(), strict=True
        ):
            if old.dim() > 1:
                change = (new - old) * kept.get(name, torch.ones_like(old, dtype=torch.bool))
                target += gamma * old.norm() / change.norm() * change
    at.generator.set_state(drawn)
    loss = objective.outer(worst, images, perturbed, labels, at).loss
    return loss.detach(), list(torch.autograd.grad(loss, list(worst.parameters())))


def weights_seen(model: nn.Module) -> list[dict[str, torch.Tensor]]:
    """A list that grows by the kernels at each pass through the model in training mode."""
    seen: list[dict[str, torch.Tensor]] = []

    def look(module: nn.Module, *_: Any) -> None:
        if module.training:
            seen.append({name: kernel.detach().clone() for name, kernel in prunable(module).items()})

    model.register_forward_hook(look)
    return seen


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("inside", INSIDE, ids=named)
def test_loss_and_gradient_are_those_of_the_papers_algorithm(inside: Adversarial, sparse: bool) -> None:
    model = fresh().double()
    kept = masked(model) if sparse else {}
    with in_doubles():
        plain, _ = gradients(inside, copy.deepcopy(model), moment())
        wanted = by_the_book(inside, copy.deepcopy(model), 0.05, kept)
        loss, found = gradients(AWP(objective=inside, gamma=0.05), model, moment(kept=kept))
    assert float(loss) == pytest.approx(float(wanted[0]), rel=1e-6)
    assert float(loss) > 1.01 * float(plain)  # the weights moved uphill
    for own, reference in zip(found, wanted[1], strict=True):
        assert torch.allclose(own, reference, rtol=1e-6, atol=1e-9)


OTHERS = {
    kind: member(epsilon=EPSILON)
    for kind, member in members(Objective).items()
    if issubclass(member, Adversarial) and member.__module__.startswith("tasks.")
}


@pytest.mark.parametrize("kind", OTHERS)
def test_every_objective_with_an_attack_of_its_own_can_be_wrapped(kind: str) -> None:
    inside, model = OTHERS[kind], fresh().double()
    if inside.replays > 1:
        with pytest.raises(ValidationError, match=f"and then takes the loss; {kind} does not"):
            AWP(objective=inside)
        return
    with in_doubles():
        wanted, _ = by_the_book(inside, copy.deepcopy(model), 0.05, {})
        loss, _ = gradients(AWP(objective=inside, gamma=0.05), model, moment())
    assert float(loss) == pytest.approx(float(wanted), rel=1e-5)


def test_the_learning_rate_of_the_authors_proxy_changes_nothing() -> None:
    inside, model = PGD(epsilon=EPSILON, steps=3), fresh().double()
    with in_doubles():
        slow, fast = (by_the_book(inside, copy.deepcopy(model), 0.05, {}, rate)[0] for rate in (1e-4, 10))
    assert float(slow) == pytest.approx(float(fast), rel=1e-9)


@pytest.mark.parametrize("inside", INSIDE, ids=named)
def test_the_models_own_weights_never_change(inside: Adversarial) -> None:
    model = fresh()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    places = [weight.data_ptr() for weight in model.parameters()]
    gradients(AWP(objective=inside), model, moment())
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert [weight.data_ptr() for weight in model.parameters()] == places
    assert all(isinstance(weight, nn.Parameter) and weight.grad is None for weight in model.parameters())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("gamma", [0.01, 0.2])
def test_every_kernel_moves_by_gamma_of_its_length_within_its_mask(gamma: float, sparse: bool) -> None:
    model = fresh()
    kept = masked(model) if sparse else {}
    seen = weights_seen(model)
    gradients(AWP(objective=PGD(epsilon=EPSILON, steps=3), gamma=gamma), model, moment(kept=kept))
    first, second = seen
    assert set(second) == {"body.0.weight", "body.4.weight"}
    for name, weight in prunable(model).items():
        assert torch.equal(first[name], weight)
        ratio = (second[name] - weight).norm() / weight.norm()
        assert float(ratio.detach()) == pytest.approx(gamma, rel=1e-4)
        if sparse:
            assert not second[name][~kept[name]].any()
            assert (second[name] != weight)[kept[name]].float().mean() > 0.9


def test_a_step_too_small_to_matter_gives_the_gradient_inside_bit_for_bit() -> None:
    for inside in INSIDE:
        reference, model, tiny = fresh(), fresh(), fresh()
        wanted = gradients(inside, reference, moment())
        for awp, net in ((AWP(objective=inside, gamma=0), model), (AWP(objective=inside, gamma=1e-30), tiny)):
            loss, found = gradients(awp, net, moment())
            assert torch.equal(loss, wanted[0])
            assert all(torch.equal(own, other) for own, other in zip(found, wanted[1], strict=True))
            for name, value in reference.state_dict().items():
                assert torch.equal(net.state_dict()[name], value), name


def test_statistics_of_batches_move_once_and_by_the_perturbed_weights() -> None:
    for inside in INSIDE:
        model, reference = fresh(), fresh()
        gradients(AWP(objective=inside, gamma=0.2), model, moment())
        gradients(inside, reference, moment())
        assert model.body[1].num_batches_tracked == reference.body[1].num_batches_tracked
        assert not torch.equal(model.body[1].running_mean, reference.body[1].running_mean)
        images, labels = batch()
        perturbed = inside.perturb(fresh(), images, labels, inside.epsilon, moment())
        worst = fresh()
        seen = weights_seen(again := fresh())
        gradients(AWP(objective=inside, gamma=0.2), again, moment())
        with torch.no_grad():
            for name, kernel in prunable(worst).items():
                kernel.copy_(seen[-1][name])
        inside.outer(worst, images, perturbed, labels, moment())
        assert torch.equal(model.body[1].running_mean, worst.body[1].running_mean)


def test_a_network_without_gradient_stays_where_it_is() -> None:
    model = fresh()
    for parameter in model.parameters():
        parameter.data.zero_()
    loss, found = gradients(AWP(objective=PGD(epsilon=EPSILON)), model, moment())
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in found)


def test_the_warm_up_is_training_without_it() -> None:
    inside = PGD(epsilon=EPSILON, steps=3)
    awp = AWP(objective=inside, gamma=0.1, warmup=0.25)
    wanted, _ = gradients(inside, fresh(), moment())
    at = [gradients(awp, fresh(), moment(step=step, steps=100))[0] for step in (0, 24, 25, 99)]
    assert torch.equal(torch.stack(at[:2]), wanted.expand(2))
    assert (torch.stack(at[2:]) > wanted).all()


def test_the_budget_inside_decides_and_learns_once_from_the_weights_as_they_are() -> None:
    inside = PGD(epsilon=EPSILON, steps=3, budget=Listening())
    told = {}
    for objective in (inside, AWP(objective=inside, gamma=0.2)):
        memory = objective.memory(TwoFeatures().signature(), 768, 64)
        seen: list[torch.Tensor] = []
        model = fresh()
        model.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0].detach()))
        gradients(objective, model, moment(memory=memory))
        assert float((seen[-1] - batch()[0]).abs().max()) == pytest.approx(EPSILON / 2, rel=1e-3)
        assert int(memory.budget.told) == 1
        told[objective.kind] = memory.budget.logits
    assert torch.equal(told["awp"], told["pgd"])
    assert not told["awp"].requires_grad


@pytest.mark.parametrize(
    "fields",
    [
        {"architecture": Tiny(norm=True, dropout=0.5)},
        {"architecture": Tiny(norm=True), "precision": "bf16"},
        {"objective": AWP(objective=TRADES(epsilon=0.1, steps=2), gamma=0.05, warmup=0.4)},
    ],
    ids=["dropout-norm", "bf16", "trades-warm-up"],
)
def test_resumed_training_is_bit_identical_at_every_batch(fields: dict[str, Any]) -> None:
    task = toy(**{"objective": AWP(objective=PGD(epsilon=0.1, steps=2), gamma=0.05), "epochs": 2, **fields})
    straight = task.run(Watch())
    for saves in range(1, 13):
        watch = Watch(saves=saves)
        torch.manual_seed(saves)
        with pytest.raises(Interrupted):
            task.run(watch)
        assert task.run(Watch(watch.state)) == straight, f"interrupted after step {saves}"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_pruned_weights_stay_dead_in_training_and_every_precision_moves_the_weights(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []
    mask = half_mask(trained(toy(epochs=1)))
    kept = load_tensors(mask.read("mask.safetensors"))
    convolve, conv = F.conv2d, kept["body.0.weight"]

    def watched(images: torch.Tensor, kernel: torch.Tensor, *rest: Any) -> torch.Tensor:
        alive.append(int((kernel != 0)[~conv].sum()))
        return convolve(images, kernel, *rest)

    monkeypatch.setattr(F, "conv2d", watched)
    results = [
        trained(toy(objective=objective, epochs=2, precision=precision), mask=mask)  # audits the mask at its end
        for objective in (AWP(objective=PGD(epsilon=0.1, steps=2), gamma=0.1), PGD(epsilon=0.1, steps=2))
    ]
    assert len(alive) == 12 * (4 + 3) + 2 * 2  # every pass of both trainings, and their validations
    assert not any(alive)
    assert results[0].metrics["digest"] != results[1].metrics["digest"]


def test_the_mask_holds_where_compilation_has_renamed_the_weights() -> None:
    awp = AWP(objective=PGD(epsilon=EPSILON, steps=3), gamma=0.2)
    plain, model = fresh(), fresh()
    wanted, loose = gradients(awp, plain, moment(kept=masked(plain))), gradients(awp, plain, moment())
    renamed = torch.compile(model, backend="eager", dynamic=False)
    loss, found = gradients(awp, renamed, moment(kept=masked(model)))
    assert torch.equal(loss, wanted[0])
    assert not torch.equal(loss, loose[0])
    assert all(torch.equal(own, other) for own, other in zip(found, wanted[1], strict=True))


class Replayed(PGD):
    """Comes back to every batch."""

    kind: Literal["test-replayed"] = "test-replayed"  # type: ignore[assignment]

    @property
    def replays(self) -> int:
        return 4


@pytest.mark.parametrize(
    ("inside", "line"),
    [
        (Standard(), "and then takes the loss; standard does not"),
        (TRADES(epsilon=0.1, beta=0), "and then takes the loss; trades does not"),
        (Replayed(epsilon=0.1), "and then takes the loss; test-replayed does not"),
        ({"kind": "awp", "objective": {"kind": "pgd", "epsilon": 0.1}}, "and then takes the loss; awp does not"),
    ],
    ids=["standard", "trades-without-beta", "replayed", "awp"],
)
def test_what_cannot_be_wrapped_is_one_clear_line(inside: Any, line: str) -> None:
    with pytest.raises(ValidationError, match=line):
        AWP(objective=inside)


@pytest.mark.parametrize("fields", [{"gamma": -0.1}, {"gamma": 1}, {"warmup": 1}, {"warmup": -0.1}], ids=str)
def test_values_out_of_bounds_do_not_validate(fields: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        AWP(objective=PGD(epsilon=0.1), **fields)


@pytest.mark.parametrize(
    ("awp", "passes"),
    [
        (AWP(objective=PGD(epsilon=0.1, steps=7)), 9),
        (AWP(objective=PGD(epsilon=0.1, steps=7), gamma=0), 8),
        (AWP(objective=TRADES(epsilon=0.1, steps=10)), 14),
        (AWP(objective=FGSMRS(epsilon=0.1)), 3),
    ],
    ids=["pgd", "without-step", "trades", "fgsm-rs"],
)
def test_the_cost_counts_every_pass(awp: AWP, passes: int) -> None:
    assert awp.passes() == passes
    forwards: list[None] = []
    model = fresh()
    model.register_forward_hook(lambda *_: forwards.append(None) if torch.is_grad_enabled() else None)
    awp.loss(model, *batch(), moment())
    assert len(forwards) == passes


def test_another_epsilon_reaches_the_attack_inside() -> None:
    awp = AWP(objective=TRADES(epsilon=0.1, beta=3), gamma=0.005)
    assert awp.against(0.2).threat == ("linf", 0.2)
    assert awp.against(0.2) == AWP(objective=TRADES(epsilon=0.2, beta=3), gamma=0.005)
    with pytest.raises(ValueError, match="at most 1 in norm linf"):
        awp.against(2)
