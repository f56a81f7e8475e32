"""The best training radius is chosen on other examples than its gain is measured on."""

from __future__ import annotations

import pytest
import torch

from tasks.measuring.over_design import best_training
from tasks.seeds import generator


def coins(chance: float, *purpose: int | str, examples: int = 2000) -> torch.Tensor:
    return torch.rand(examples, generator=generator("coins", *purpose)) < chance


def test_a_training_that_is_really_better_is_found_with_its_gain() -> None:
    standing = {
        epsilon: [coins(chance, epsilon, replicate) for replicate in range(5)]
        for epsilon, chance in {"0.1": 0.5, "0.12": 0.7, "0.15": 0.6}.items()
    }
    found = best_training(0.1, {float(epsilon): each for epsilon, each in standing.items()})
    assert found.epsilon == 0.12
    assert found.gain is not None
    assert found.low is not None
    assert found.high is not None
    assert found.accuracy == pytest.approx(0.7, abs=0.02)
    assert found.low < 0.2 < found.high
    assert found.low > 0.15


def test_the_luckiest_of_equal_trainings_gains_nothing() -> None:
    """Choosing and measuring on the same examples would find a gain here: the highest of eight lucky draws."""
    honest, flattered = [], []
    for trial in range(60):
        standing = {
            round(0.1 + place / 100, 2): [coins(0.5, trial, place, replicate, examples=60) for replicate in range(2)]
            for place in range(8)
        }
        found = best_training(0.1, standing)
        honest.append(found.gain or 0.0)
        flattered.append(found.accuracy - float(torch.stack(standing[0.1]).double().mean()))
    assert sum(flattered) / 60 > 0.05
    assert abs(sum(honest) / 60) < 0.02


def test_lucky_seeds_of_equal_trainings_gain_nothing() -> None:
    """A seed's luck lasts over all examples: choosing on other examples alone would find a gain of half a point."""
    gains, surely = [], 0
    for trial in range(150):
        luck = 0.5 + 0.02 * torch.randn(7, 5, generator=generator("luck", trial))
        standing = {
            round(0.1 + place / 100, 2): [
                coins(float(luck[place, replicate]), trial, place, replicate, examples=400) for replicate in range(5)
            ]
            for place in range(7)
        }
        found = best_training(0.1, standing)
        assert found.gain is not None
        assert found.low is not None
        gains.append(found.gain)
        surely += found.low > 0
    assert abs(sum(gains) / 150) < 0.003
    assert surely < 0.1 * 150


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for trial in range(200):
        lift = 0.1 * torch.randn(3, generator=generator("lift", trial))  # trainings differ by luck
        standing = {
            0.1: [coins(0.5, trial, "low", replicate, examples=400) for replicate in range(3)],
            0.2: [
                coins(0.8 + float(lift[replicate]) / 2, trial, "high", replicate, examples=400)
                for replicate in range(3)
            ],
        }
        found = best_training(0.1, standing)
        covered += (found.low or 0) <= 0.3 <= (found.high or 0)
    assert 180 <= covered <= 199


def test_one_replicate_gives_an_interval_over_examples() -> None:
    found = best_training(0.1, {0.1: [coins(0.4, "one")], 0.2: [coins(0.6, "two")]})
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.2 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * (2 * 0.24 / 2000) ** 0.5, rel=0.05)


def test_where_no_training_is_at_delta_there_is_no_gain() -> None:
    found = best_training(0.17, {0.05: [coins(0.1, 1)], 0.1: [coins(0.3, 2)], 0.3: [coins(0.2, 3)]})
    assert (found.epsilon, found.gain, found.low, found.high) == (0.1, None, None, None)


def test_replicates_that_happen_to_agree_do_not_make_the_gain_certain() -> None:
    """Twice the same difference on few examples: Student's interval over the two alone would have no width."""
    worse = [torch.arange(40) % 4 == 0, torch.arange(40) % 4 == 1]
    better = [torch.arange(40) % 2 == 0, torch.arange(40) % 2 == 1]
    found = best_training(0.1, {0.1: worse, 0.2: better})
    assert found.gain == pytest.approx(0.25)
    assert found.low is not None
    assert found.low < 0


def test_equal_trainings_prefer_the_smaller_radius() -> None:
    same = coins(0.5, "same")
    found = best_training(0.1, {0.3: [same], 0.1: [same], 0.2: [same]})
    assert (found.epsilon, found.gain, found.low, found.high) == (0.1, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("standing", "words"),
    [
        ({0.1: [coins(0.5, 1)], 0.2: [coins(0.5, 1), coins(0.5, 2)]}, "same number of replicates"),
        ({0.1: [coins(0.5, 1, examples=1)], 0.2: [coins(0.5, 1, examples=1)]}, "two examples"),
    ],
)
def test_what_cannot_be_compared_is_refused(standing: dict[float, list[torch.Tensor]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        best_training(0.1, standing)
