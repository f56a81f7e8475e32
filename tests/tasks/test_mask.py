"""Masks: exact counts, deterministic ties, algebra, enforcement on weights and optimizer slots."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn, optim

from tasks.pruning.mask import Enforcer, Mask

Rule = Callable[[Iterable[nn.Parameter]], optim.Optimizer]


def mask_of(**layers: list[int]) -> Mask:
    return Mask({name: torch.tensor(layer, dtype=torch.bool) for name, layer in layers.items()})


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4, 3))


def sparse_mask(model: nn.Sequential, seed: int = 0) -> Mask:
    generator = torch.Generator().manual_seed(seed)
    weights = {"0.weight": model[0].weight, "4.weight": model[4].weight}
    return Mask({name: torch.rand(weight.shape, generator=generator) < 0.3 for name, weight in weights.items()})


def train(model: nn.Sequential, optimizer: optim.Optimizer, steps: int, after: Callable[[], None]) -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 2, 4, 4, generator=generator)).square().sum().backward()
        optimizer.step()
        after()


# --- counts, ties, algebra ------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_top_keeps_exactly_the_best_and_the_earliest_of_equals(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=4))
    flat = data.draw(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=sum(sizes), max_size=sum(sizes)))
    alive = data.draw(st.lists(st.booleans(), min_size=sum(sizes), max_size=sum(sizes)))
    keep = data.draw(st.integers(0, sum(alive)))
    names = [f"layer{place}" for place in range(len(sizes))]
    scores = dict(zip(names, torch.tensor(flat).split(sizes), strict=True))
    within = Mask(dict(zip(names, torch.tensor(alive).split(sizes), strict=True)))
    kept = within.top(scores, keep)
    best = sorted((place for place in range(len(flat)) if alive[place]), key=lambda place: (-flat[place], place))[:keep]
    assert torch.cat([kept[name] for name in names]).nonzero().flatten().tolist() == sorted(best)
    assert kept.nnz == keep
    assert kept.nested_in(within)


def test_all_scores_equal_still_keep_the_exact_count() -> None:
    weights = {"a": torch.ones(10, 10), "b": torch.ones(7)}
    kept = Mask.ones_like(weights).top(weights, 101)
    assert kept.layer_nnz == {"a": 100, "b": 1}
    assert kept["b"].tolist() == [True] + [False] * 6


def test_ranking_does_not_depend_on_the_order_of_the_layers() -> None:
    scores = {"b": torch.ones(4), "a": torch.ones(4)}
    other = {name: scores[name] for name in sorted(scores)}
    assert Mask.ones_like(scores).top(scores, 5) == Mask.ones_like(other).top(other, 5)


def test_scores_are_compared_as_they_are_not_rounded_to_a_common_float() -> None:
    close = {"a": torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64), "b": torch.tensor([1.0])}
    assert Mask.ones_like(close).top(close, 1)["a"].tolist() == [False, True]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_number_is_refused_and_named_unless_pruned(bad: float) -> None:
    scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([bad, 3.0])}
    with pytest.raises(ValueError, match="a score in 'b' is NaN or infinite"):
        Mask.ones_like(scores).top(scores, 2)
    assert mask_of(a=[1, 1], b=[0, 1]).top(scores, 2) == mask_of(a=[0, 1], b=[0, 1])


@pytest.mark.parametrize("keep", [-1, 4])
def test_keeping_more_than_there_are_is_refused(keep: int) -> None:
    mask = mask_of(a=[1, 1, 1, 0])
    with pytest.raises(ValueError, match=f"cannot keep {keep} of 3 weights"):
        mask.top({"a": torch.ones(4)}, keep)


def test_densities_count_kept_over_all() -> None:
    mask = mask_of(a=[1, 0, 0, 0], b=[1, 1])
    assert (mask.nnz, mask.total, mask.density) == (3, 6, 0.5)
    assert mask.layer_densities == {"a": 0.25, "b": 1.0}


def test_set_algebra() -> None:
    one, other = mask_of(a=[1, 1, 0, 0], b=[1]), mask_of(a=[1, 0, 1, 0], b=[1])
    assert one & other == mask_of(a=[1, 0, 0, 0], b=[1])
    assert one | other == mask_of(a=[1, 1, 1, 0], b=[1])
    assert one.iou(other) == 2 / 4
    assert (one & other).nested_in(one)
    assert not one.nested_in(other)
    assert mask_of(a=[0]).iou(mask_of(a=[0])) == 1


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (mask_of(b=[1, 1]), "it has 'a', which is not among the prunable weights"),
        (mask_of(a=[1, 1], b=[1]), "it has no 'b'"),
        (mask_of(a=[1, 1, 1]), r"'a' is \(2,\) in the mask and \(3,\) in the weights"),
    ],
)
def test_masks_of_different_networks_do_not_mix(other: Mask, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask_of(a=[1, 0]) & other


# --- identity and storage -------------------------------------------------------------------------------------------


def test_a_mask_cannot_be_changed_from_outside() -> None:
    source = torch.tensor([True, False])
    mask = Mask({"a": source})
    source.fill_(True)
    mask["a"].fill_(True)
    assert mask == mask_of(a=[1, 0])


def test_digest_tells_positions_names_and_shapes_apart() -> None:
    variants = [
        mask_of(a=[1, 0]),
        mask_of(a=[0, 1]),
        mask_of(b=[1, 0]),
        mask_of(a=[1, 0, 0]),
        Mask({"a": torch.tensor([[True, False]])}),
        mask_of(a=[1], b=[0]),
    ]
    assert len({mask.digest for mask in variants}) == len(set(variants)) == len(variants)
    assert mask_of(a=[1, 0], b=[1]) == mask_of(b=[1], a=[1, 0])
    assert mask_of(a=[1, 0]).digest == "e54f039c3e11510b49c90ea86d46d44c2fc705eb3956dcf9453131eb160761cd"


def test_a_mask_survives_saving_and_reads_as_plain_bools() -> None:
    mask = sparse_mask(network())
    content = mask.to_bytes()
    assert Mask.from_bytes(content) == mask
    assert Mask.from_bytes(content).to_bytes() == content
    assert all(torch.equal(layer, mask[name]) and layer.dtype == torch.bool for name, layer in load(content).items())


def test_only_bools_are_a_mask() -> None:
    with pytest.raises(ValueError, match=r"mask of 'a' is torch\.float32, not bool"):
        Mask.from_bytes(save({"a": torch.tensor([1.0, 0.0])}))
    with pytest.raises(ValueError, match="not a safetensors file"):
        Mask.from_bytes(b"{}")


def test_shuffling_keeps_every_layers_count_and_moves_positions_by_seed() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = Mask({"a": torch.rand(50, 40, generator=generator) < 0.1, "b": torch.rand(60, generator=generator) < 0.7})
    shuffled = mask.shuffled(1)
    assert shuffled.layer_nnz == mask.layer_nnz
    assert shuffled == mask.shuffled(1)
    assert len({mask, shuffled, mask.shuffled(2)}) == 3
    assert shuffled.iou(mask) < 0.3  # 0.05 for layer a and 0.54 for layer b by chance


def test_shuffling_one_layer_does_not_depend_on_the_others() -> None:
    layer = torch.arange(100) < 30
    alone, together = Mask({"a": layer}), Mask({"a": layer, "0": torch.ones(7, dtype=torch.bool)})
    assert torch.equal(alone.shuffled(4)["a"], together.shuffled(4)["a"])
    twins = Mask({"a": layer, "b": layer}).shuffled(4)
    assert not torch.equal(twins["a"], twins["b"])


# --- enforcement ----------------------------------------------------------------------------------------------------

RULES: dict[str, Rule] = {
    "sgd-momentum": lambda parameters: optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=0.1),
    "sgd-nesterov": lambda parameters: optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=True),
    "adam": lambda parameters: optim.Adam(parameters, lr=0.01, weight_decay=0.1),
    "adamw-amsgrad": lambda parameters: optim.AdamW(parameters, lr=0.01, weight_decay=0.1, amsgrad=True),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_momentum_and_decay_never_revive_a_pruned_weight(rule: Rule) -> None:
    model = network()
    mask = sparse_mask(model)
    optimizer = rule(model.parameters())
    train(model, optimizer, 3, after=lambda: None)  # dense at first, so that slots hold momentum everywhere
    enforce = Enforcer(mask, model, optimizer)
    enforce()
    train(model, optimizer, 4, after=lambda: (enforce(), mask.audit(model)))
    for name, layer in mask.items():
        weight = model.get_parameter(name)
        slots = [slot for slot in optimizer.state[weight].values() if slot.shape == weight.shape]
        assert slots
        for tensor in (weight.detach(), *slots):
            assert not tensor[~layer].any()
            assert not tensor[~layer].signbit().any()
            assert tensor[layer].all()


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_pruned_weights_come_alive_where_nothing_enforces_the_mask(rule: Rule) -> None:
    model = network()
    mask = sparse_mask(model)
    mask.apply_(model)
    mask.audit(model)
    train(model, rule(model.parameters()), 1, after=lambda: None)
    with pytest.raises(ValueError, match=r"pruned weights of '0\.weight' are not zero"):
        mask.audit(model)


def test_enforcing_a_full_mask_changes_no_bit() -> None:
    plain, masked = network(), network()
    rule = RULES["adam"]
    train(plain, rule(plain.parameters()), 3, after=lambda: None)
    optimizer = rule(masked.parameters())
    mask = Mask.ones_like({"0.weight": masked[0].weight, "4.weight": masked[4].weight})
    train(masked, optimizer, 3, after=Enforcer(mask, masked, optimizer))
    assert all(torch.equal(one, other) for one, other in zip(plain.parameters(), masked.parameters(), strict=True))


def test_enforcement_equals_training_only_the_kept_weights() -> None:
    whole, reference = network(), network()
    mask = sparse_mask(whole)
    optimizer = RULES["adam"](whole.parameters())
    mask.enforce_(whole, optimizer)
    train(whole, optimizer, 5, after=Enforcer(mask, whole, optimizer))
    mask.apply_(reference)
    for name, layer in mask.items():
        reference.get_parameter(name).register_hook(lambda gradient, layer=layer: gradient * layer)
    train(reference, RULES["adam"](reference.parameters()), 5, after=lambda: None)
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), reference.parameters(), strict=True))


def test_slots_loaded_from_a_checkpoint_are_enforced_too() -> None:
    model = network()
    mask = sparse_mask(model)
    optimizer = RULES["adam"](model.parameters())
    enforce = Enforcer(mask, model, optimizer)
    train(model, optimizer, 2, after=lambda: None)
    optimizer.load_state_dict(optimizer.state_dict())
    enforce()
    weight = model.get_parameter("0.weight")
    assert not optimizer.state[weight]["exp_avg"][~mask["0.weight"]].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_enforcement_is_exact_in_every_precision_and_layout(dtype: torch.dtype, layout: torch.memory_format) -> None:
    model = network().to(dtype=dtype, memory_format=layout)
    mask = sparse_mask(model)
    expected = {name: torch.where(layer, model.get_parameter(name), 0) for name, layer in mask.items()}
    Enforcer(mask, model, optim.SGD(model.parameters()))()
    for name in mask:
        assert torch.equal(model.get_parameter(name), expected[name])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e-45])
def test_nothing_but_zero_passes_the_audit_and_enforcement_clears_it(bad: float) -> None:
    model = network()
    mask = sparse_mask(model)
    optimizer = optim.SGD(model.parameters())
    mask.apply_(model)
    weight = model.get_parameter("4.weight").detach()
    weight.view(-1)[int((~mask["4.weight"]).flatten().nonzero()[0])] = bad
    with pytest.raises(ValueError, match=r"1 pruned weights of '4\.weight' are not zero"):
        mask.audit(model)
    Enforcer(mask, model, optimizer)()
    mask.audit(model)


def test_a_kept_weight_that_is_zero_stays_kept() -> None:
    model = network()
    mask = sparse_mask(model)
    for name in mask:
        model.get_parameter(name).detach().zero_()
    mask.apply_(model)
    optimizer = RULES["adam"](model.parameters())
    train(model, optimizer, 1, after=Enforcer(mask, model, optimizer))
    assert model.get_parameter("4.weight").detach()[mask["4.weight"]].any()


def test_a_mask_of_another_network_is_refused() -> None:
    model = network()
    mask = mask_of(**{"0.weight": [1, 0]})
    optimizer = optim.SGD(model.parameters())
    for act in (mask.apply_, mask.audit, lambda model: Enforcer(mask, model, optimizer)):
        with pytest.raises(ValueError, match=r"the mask does not fit: '0\.weight'"):
            act(model)
