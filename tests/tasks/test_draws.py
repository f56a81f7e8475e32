"""Random numbers that belong to an example are random, and its own."""

from __future__ import annotations

import pytest
import torch

from tasks.attacks.draws import Draws

GOLDEN = [[6361805, 6957307], [1608174, 9550771]]
"""24-bit numbers; they are the same on every machine."""


def draws(count: int = 1000, seed: int = 0) -> Draws:
    return Draws(seed, torch.arange(count))


def test_uniform_numbers_fill_the_interval_evenly() -> None:
    found = draws().uniform((200,), "x")
    assert found.shape == (1000, 200)
    assert found.dtype == torch.float32
    assert 0 <= found.min() < 1e-4
    assert 1 - 1e-4 < found.max() < 1
    counts = torch.histc(found, bins=100, min=0, max=1)
    chi_squared = ((counts - 2000) ** 2 / 2000).sum()
    assert 60 < chi_squared < 150  # 99 degrees of freedom
    for one, other in ((found[:-1], found[1:]), (found[:, :-1], found[:, 1:])):
        assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) < 0.01


def test_normal_numbers_have_the_moments_of_a_normal() -> None:
    found = draws().normal((3, 33), "x")
    assert found.shape == (1000, 3, 33)
    moments = [float((found**power).mean()) for power in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.06)
    assert found.isfinite().all()
    assert abs(float((found.abs() > 1.959964).double().mean()) - 0.05) < 0.003


def test_integers_reach_every_value_below_their_bound_and_none_above() -> None:
    found = draws().integers(7, (50,), "x")
    counts = found.flatten().bincount()
    assert len(counts) == 7
    assert (counts - 50_000 / 7).abs().max() < 400
    bounds = torch.arange(1, 1001).view(-1, 1)
    bounded = draws().integers(bounds, (20,), "x")
    assert (bounded < bounds).all()
    assert not bounded[0].any()


def test_signs_are_even() -> None:
    found = draws().signs((100,), "x")
    assert set(found.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(found.mean())) < 0.01


def test_an_example_draws_the_same_in_any_company() -> None:
    whole = draws()
    some = torch.tensor([5, 900, 17])
    for kind in ("uniform", "normal", "signs"):
        assert torch.equal(getattr(whole.at(some), kind)((4, 3), "x"), getattr(whole, kind)((4, 3), "x")[some])
    assert torch.equal(Draws(0, some).uniform((4,), "x"), whole.uniform((4,), "x")[some])


def test_other_purposes_seeds_examples_and_places_draw_other_numbers() -> None:
    found = [
        draws().uniform((5,), "x"),
        draws().uniform((5,), "y"),
        draws().uniform((5,), "x", 1),
        draws(seed=1).uniform((5,), "x"),
        draws().under("x").uniform((5,), "x"),
    ]
    assert len(torch.cat(found).flatten().unique()) > 0.998 * 25_000  # 24 bits collide now and then
    assert torch.equal(draws().under("x").uniform((5,), "y"), draws().under("x").uniform((5,), "y"))


def test_the_first_numbers_are_as_recorded() -> None:
    assert Draws(3, torch.tensor([0, 7])).uniform((2,), "start", 0).mul(2**24).long().tolist() == GOLDEN
