"""Saliencies that look at the network: their formulas against finite differences and networks done by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tasks.component import members
from tasks.data import Examples, Signature
from tasks.models.initialise import initialise
from tasks.models.network import Network
from tasks.models.prunable import prunable
from tasks.pruning import Saliency, gap, gradients
from tasks.pruning.candidate import Candidate
from tasks.pruning.gap import GAP
from tasks.pruning.gradients import drawn
from tasks.pruning.grasp import GraSP
from tasks.pruning.magnitude_gradient import MagnitudeGradient
from tasks.pruning.mask import Mask
from tasks.pruning.prune import Prune
from tasks.pruning.snip import SNIP
from tasks.pruning.synflow import SynFlow
from tasks.seeds import generator
from tasks.task import Alone
from tests.tasks.test_pruning import kept_by, trained
from tests.tasks.training_toys import Blobs, Tiny

SIGNATURE = Blobs().signature()
EXAMPLES = Blobs().load("train")

SALIENCIES: list[Saliency] = [
    MagnitudeGradient(),
    MagnitudeGradient(examples=10),
    SNIP(examples=12),
    GraSP(per_class=3),
    SynFlow(),
    GAP(epsilon=0.1, steps=2),
    GAP(epsilon=0.5, norm="l2", steps=2, examples=9, variant="global-times-parameter"),
    GAP(epsilon=0.1, steps=1, variant="layer"),
]


def candidate(
    model: nn.Module, examples: Examples | None = EXAMPLES, signature: Signature = SIGNATURE, seed: int = 0
) -> Candidate:
    kernels = {name: kernel.detach().clone() for name, kernel in prunable(model).items()}
    return Candidate(kernels, Mask.ones_like(kernels), generator(seed), model.eval(), examples, signature)


def toy(norm: bool = False, seed: int = 0) -> nn.Module:
    """The toy network in float64, for finite differences."""
    return initialise(Tiny(norm=norm), SIGNATURE, seed).double()


def loss(model: nn.Module, examples: Examples = EXAMPLES, temperature: float = 1) -> torch.Tensor:
    return F.cross_entropy(model(examples.images.float() / 255) / temperature, examples.labels)


def slope(of: Callable[[], torch.Tensor], weight: torch.Tensor, place: int, step: float = 1e-5) -> float:
    """How `of` changes with a factor on one weight, by central differences."""
    values = weight.detach().view(-1)
    own = values[place].item()
    found = []
    for factor in (1 + step, 1 - step):
        values[place] = own * factor
        found.append(of().item())
    values[place] = own
    return (found[0] - found[1]) / (2 * step)


def slopes(of: Callable[[], torch.Tensor], model: nn.Module, stride: int) -> dict[str, torch.Tensor]:
    """The slope for every so many weights of each kernel."""
    return {
        name: torch.tensor([slope(of, kernel, place) for place in range(0, kernel.numel(), stride)]).double()
        for name, kernel in prunable(model).items()
    }


def test_they_are_found_by_their_names() -> None:
    known = members(Saliency)
    for kind, member in {
        "magnitude-gradient": MagnitudeGradient,
        "snip": SNIP,
        "grasp": GraSP,
        "synflow": SynFlow,
        "gap": GAP,
    }.items():
        assert known[kind] is member


@pytest.mark.parametrize("saliency", [MagnitudeGradient(), SNIP(examples=44)])
def test_magnitude_gradient_and_snip_are_the_derivative_with_respect_to_a_factor_on_the_weight(
    saliency: Saliency,
) -> None:
    model = toy(norm=True)
    scores = saliency.score(candidate(model))
    with torch.no_grad():
        for name, expected in slopes(lambda: loss(model), model, 5).items():
            assert torch.allclose(scores[name].flatten()[::5], expected.abs(), atol=1e-8), name


def test_the_gradient_is_the_mean_over_all_examples_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    for saliency in SALIENCIES:
        whole = saliency.score(candidate(initialise(Tiny(), SIGNATURE, 0)))
        with monkeypatch.context() as patched:
            for module in (gradients, gap):
                patched.setattr(module, "BLOCK", 5)
            parts = saliency.score(candidate(initialise(Tiny(), SIGNATURE, 0)))
        for name, score in whole.items():
            scale = score.abs().max().item()
            assert torch.allclose(score.double(), parts[name].double(), rtol=1e-4, atol=1e-5 * scale), (saliency, name)


def test_drawn_examples_are_spread_over_the_classes_and_follow_the_generator() -> None:
    rows = drawn(candidate(toy()), 12)
    assert EXAMPLES.labels[rows].bincount().tolist() == [3, 3, 3, 3]
    assert torch.equal(rows, drawn(candidate(toy()), 12))
    assert not torch.equal(rows, drawn(candidate(toy(), seed=1), 12))
    network = candidate(toy())
    assert not torch.equal(drawn(network, 12), drawn(network, 12))  # another round draws other examples
    assert torch.equal(drawn(network, None), torch.arange(44))


def test_snip_scores_the_examples_it_draws_and_no_others() -> None:
    rows = drawn(candidate(toy()), 8)
    alone = Examples(EXAMPLES.images[rows], EXAMPLES.labels[rows])
    scores, expected = SNIP(examples=8).score(candidate(toy())), MagnitudeGradient().score(candidate(toy(), alone))
    for name, score in scores.items():
        assert torch.allclose(score, expected[name], rtol=1e-9)


def test_grasp_is_half_the_change_of_the_squared_gradient_with_a_factor_on_the_weight() -> None:
    """|g|² falls by twice the score times the share of the weight that is taken away, Hessian-vector product and all.

    The gradient is that of the loss of logits divided by the temperature, over as many examples of each class.
    """
    model = toy()
    saliency = GraSP(per_class=11, temperature=2)
    scores = saliency.score(candidate(model))

    def flow() -> torch.Tensor:
        gradients = torch.autograd.grad(loss(model, temperature=2), list(prunable(model).values()))
        return torch.stack([gradient.square().sum() for gradient in gradients]).sum()

    signs = set()
    for name, expected in slopes(flow, model, 7).items():
        assert torch.allclose(scores[name].flatten()[::7], expected / 2, rtol=1e-4, atol=1e-9), name
        signs |= set(scores[name].sign().flatten().tolist())
    assert {-1.0, 1.0} <= signs  # the scores are signed: the lowest are those whose removal lets gradients flow


def test_grasp_draws_as_many_of_each_class_however_rare_it_is() -> None:
    labels = torch.tensor([0] * 30 + [1] * 3 + [2] * 11)
    network = candidate(initialise(Tiny(), SIGNATURE, 0), Examples(EXAMPLES.images, labels))
    rows = GraSP(per_class=3)._balanced(network.examples, 0)
    assert labels[rows].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert len(rows.unique()) == 9
    assert GraSP(per_class=3).sample_steps(network.examples) == 3 * 9


def by_hand(body: nn.Sequential, channels: int, side: int) -> Candidate:
    signature = Signature(channels, side, side, 2, (0.4,) * channels, (0.3,) * channels)
    return candidate(Network(signature, body, body[-1]), None, signature)


def test_synflow_of_two_layers_is_the_product_of_absolute_weights_along_paths() -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    first = body[1].weight.data = torch.tensor([[1.0, -2.0, 0.0, 3.0], [-1.0, 0.5, 0.25, -4.0]])
    second = body[3].weight.data = torch.tensor([[-1.0, 2.0], [3.0, -0.5]])
    scores = SynFlow().score(by_hand(body, 1, 2))
    assert torch.equal(scores["body.1.weight"], (first.abs() * second.abs().sum(dim=0).view(2, 1)).double())
    assert torch.equal(scores["body.3.weight"], (second.abs() * first.abs().sum(dim=1)).double())


def test_synflow_takes_a_batch_norm_as_a_positive_factor_and_shift() -> None:
    """Scores of one path: nothing depends on a batch of one, and a mean that is subtracted blocks no flow."""
    norm = nn.BatchNorm1d(1)
    norm.weight.data, norm.bias.data = torch.tensor([-2.0]), torch.tensor([-0.5])
    norm.running_mean, norm.running_var = torch.tensor([7.0]), torch.tensor([4.0])
    body = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=False), norm, nn.ReLU(), nn.Linear(1, 2, bias=False))
    body[1].weight.data, body[4].weight.data = torch.tensor([[-3.0]]), torch.tensor([[5.0], [-1.0]])
    scores = SynFlow().score(by_hand(body, 1, 1))
    factor = 2 / (4 + norm.eps) ** 0.5
    assert scores["body.1.weight"].item() == pytest.approx(3 * factor * 6, rel=1e-12)
    expected = [5 * (factor * (3 + 7) + 0.5), 1 * (factor * (3 + 7) + 0.5)]
    assert scores["body.4.weight"].flatten().tolist() == pytest.approx(expected, rel=1e-12)


def conserving(norm: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6) if norm else nn.Identity(),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(5) if norm else nn.Identity(),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(20, 7, bias=False),
        nn.ReLU(),
        nn.Linear(7, 2, bias=False),
    )


@pytest.mark.parametrize("norm", [False, True])
def test_what_flows_into_a_unit_flows_out_of_it(norm: bool) -> None:
    """Tanaka et al. 2020, theorems 1 and 2: conserved by every hidden unit, and so by every layer."""
    torch.manual_seed(1)
    scores = SynFlow().score(by_hand(conserving(norm), 2, 16))
    conv1, conv2, hidden, output = scores.values()
    through = [
        (conv1.sum(dim=(1, 2, 3)), conv2.sum(dim=(0, 2, 3))),
        (conv2.sum(dim=(1, 2, 3)), hidden.view(7, 5, 4).sum(dim=(0, 2))),
        (hidden.sum(dim=1), output.sum(dim=0)),
    ]
    for entering, leaving in through:
        assert (entering > 0).all()
        assert torch.allclose(entering, leaving, rtol=1e-6, atol=0)
    flows = torch.stack([score.sum() for score in scores.values()])
    assert torch.allclose(flows, flows[0].expand(4), rtol=1e-6)


def test_shifts_of_a_trained_network_only_add_to_the_flow() -> None:
    torch.manual_seed(2)
    body = conserving(norm=True)
    for layer in body:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
            layer.running_mean.normal_(0, 3)
            layer.running_var.uniform_(0.1, 2)
    conv1, conv2, hidden, _ = SynFlow().score(by_hand(body, 2, 16)).values()
    assert (conv1.sum(dim=(1, 2, 3)) < conv2.sum(dim=(0, 2, 3))).all()
    assert (conv2.sum(dim=(1, 2, 3)) < hidden.view(7, 5, 4).sum(dim=(0, 2))).all()


def test_synflow_survives_flows_that_float32_cannot_hold() -> None:
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(40):
        layers += [nn.Linear(16, 16, bias=False), nn.ReLU()]
        nn.init.constant_(layers[-2].weight, 1.0)
    body = nn.Sequential(*layers, nn.Linear(16, 2, bias=False))
    nn.init.constant_(body[-1].weight, 1.0)
    scores = SynFlow().score(by_hand(body, 1, 4))
    assert scores["body.1.weight"][0, 0].item() == pytest.approx(2 * 16.0**39, rel=1e-12)


def attacked_by_hand(epsilon: float) -> tuple[Candidate, dict[str, torch.Tensor]]:
    """A linear network of two classes, for which the strongest image is known, and its gradient there."""
    signature = Signature(1, 3, 3, 2, (0.5,), (0.25,))
    body = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    network = Network(signature, body, body[1])
    body[1].weight.data = torch.randn(2, 9, generator=generator("linear"))
    images = torch.randint(0, 256, (30, 1, 3, 3), generator=generator("images")).to(torch.uint8)
    labels = torch.arange(30) % 2
    upwards = torch.where(labels == 0, 1, -1).view(-1, 1) * (body[1].weight[1] - body[1].weight[0]).sign()
    strongest = (images.float() / 255 + epsilon * upwards.view(-1, 1, 3, 3)).clamp(0, 1).detach()
    (gradient,) = torch.autograd.grad(F.cross_entropy(network(strongest), labels), [body[1].weight])
    return candidate(network, Examples(images, labels), signature), {"body.1.weight": gradient}


@pytest.mark.parametrize("variant", ["global", "global-times-parameter", "layer"])
def test_gap_ranks_by_the_gradient_at_the_strongest_images_of_the_true_labels(variant: Any) -> None:
    network, gradients = attacked_by_hand(epsilon=0.2)
    saliency = GAP(epsilon=0.2, variant=variant, steps=5, relative_step=0.5)
    scores = saliency.score(network)
    for name, gradient in gradients.items():
        first = {
            "global": gradient,
            "global-times-parameter": network.weights[name] * gradient,
            "layer": gradient.abs(),
        }[variant]
        assert torch.allclose(scores[name], -first.double(), atol=1e-6)
    assert saliency.sample_steps(network.examples) == 6 * 30


def test_gap_breaks_the_ties_of_dead_weights_at_random_between_the_signs() -> None:
    def scores(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        body = nn.Sequential(nn.Flatten(), nn.Linear(36, 40), nn.ReLU(), nn.Linear(40, 4))
        for place, layer in ((1, body[1]), (3, body[3])):
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator("layer", place))
        body[1].bias.data = torch.tensor([-100.0] * 20 + [100.0] * 20)  # half never fire, half always do
        nn.init.zeros_(body[3].bias)
        network = candidate(Network(SIGNATURE, body, body[3]), seed=seed)
        hidden, output = GAP(epsilon=0.1, steps=2).score(network).values()
        dead = torch.cat([hidden[:20].flatten(), output[:, :20].flatten()])
        return dead, torch.cat([hidden[20:].flatten(), output[:, 20:].flatten()])

    dead, alive = scores(0)
    assert 0 < dead.abs().max() < alive.abs().min()
    assert len(dead.unique()) == len(dead)
    assert 0.4 < (dead > 0).double().mean() < 0.6
    assert torch.equal(dead, scores(0)[0])
    assert not torch.equal(dead.argsort(), scores(1)[0].argsort())


@pytest.mark.parametrize("saliency", SALIENCIES, ids=repr)
def test_scores_follow_their_seed_and_leave_the_candidate_and_the_global_generator_as_they_were(
    saliency: Saliency,
) -> None:
    contents = []
    for seed in (1, 2):
        architecture = Tiny(norm=True, dropout=0.5)
        model = initialise(architecture, SIGNATURE, 0)
        network = candidate(model)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        scores = saliency.score(network)
        assert torch.equal(torch.get_rng_state(), state)
        assert not any(module.training for module in model.modules())
        for name, parameter in model.named_parameters():
            assert parameter.grad is None
            assert parameter.requires_grad, name
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]), name
        assert torch.equal(network.examples.images, Blobs().load("train").images)
        assert {name: score.shape for name, score in scores.items()} == {
            name: weight.shape for name, weight in network.weights.items()
        }
        assert not any(score.requires_grad for score in scores.values())
        contents.append(scores)
    assert all(torch.equal(contents[0][name], contents[1][name]) for name in contents[0])


@pytest.mark.parametrize("saliency", SALIENCIES, ids=repr)
def test_prunings_are_bit_identical_and_say_what_they_cost(saliency: Saliency) -> None:
    step = trained(initialise(Tiny(), SIGNATURE, 0))
    scope: Any = "layerwise" if saliency.within_layers else "global"
    prune = Prune(density=0.3, scope=scope, saliency=saliency, rounds=2, seed=3).beside(Blobs(), Tiny())
    torch.manual_seed(1)
    first = prune.run(Alone(), trained=step)
    torch.manual_seed(2)
    second = prune.run(Alone(), trained=step)
    assert first.files == second.files
    assert kept_by(first).nnz == round(0.3 * 651)
    cost = {MagnitudeGradient: 44, SNIP: 12, GraSP: 36, SynFlow: 0, GAP: 0}[type(saliency)]
    if isinstance(saliency, GAP):
        cost = (saliency.steps + 1) * (saliency.examples or 44)
    if saliency == MagnitudeGradient(examples=10):
        cost = 10
    assert first.metrics.get("sample_steps", 0) == 2 * cost
    assert ("sample_steps" in first.metrics) == (cost > 0)


@pytest.mark.parametrize(
    ("saliency", "message"),
    [
        (SNIP(), "saliency: examples is 128, but the training split holds 44"),
        (MagnitudeGradient(examples=45), "saliency: examples is 45, but the training split holds 44"),
        (GAP(epsilon=0.1, examples=45), "saliency: examples is 45, but the training split holds 44"),
        (GraSP(per_class=12), "saliency: per_class is 12, but class 0 has 11 examples in the training split"),
    ],
)
def test_more_examples_than_there_are_are_refused_in_one_line(saliency: Saliency, message: str) -> None:
    prune = Prune(density=0.3, saliency=saliency).beside(Blobs(), Tiny())
    with pytest.raises(ValueError, match=message):
        prune.run(Alone(), trained=trained(initialise(Tiny(), SIGNATURE, 0)))


def test_a_network_whose_answers_are_no_numbers_is_not_scored() -> None:
    model = initialise(Tiny(), SIGNATURE, 0)
    model.get_parameter("body.0.bias").data.fill_(float("inf"))
    with pytest.raises(ValueError, match="the model's logits are not finite"):
        SNIP(examples=8).score(candidate(model))


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "gap"},
        {"kind": "gap", "epsilon": 0},
        {"kind": "gap", "epsilon": 1.5},
        {"kind": "gap", "epsilon": 0.1, "variant": "local"},
        {"kind": "gap", "epsilon": 0.1, "steps": 0},
        {"kind": "snip", "examples": 0},
        {"kind": "grasp", "temperature": 0},
        {"kind": "grasp", "per_class": 0},
        {"kind": "magnitude-gradient", "examples": 0},
        {"kind": "synflow", "rounds": 3},
    ],
)
def test_fields_out_of_their_bounds_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="saliency"):
        Prune(fraction=0.2, saliency=fields)
