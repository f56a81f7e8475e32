"""Densities of layers: the published values, exact totals, and rounds that follow one another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Size

from tasks.pruning.densities import apportioned, erdos_renyi_kernel

LENET = {"hidden1": Size((300, 784)), "hidden2": Size((100, 300)), "output": Size((10, 100))}
TOTAL = 266_200


@pytest.mark.parametrize(
    ("sparsity", "densities"),
    [
        (0.9, (0.0796, 0.2302, 1.0)),
        (0.95, (0.0385, 0.1113, 0.9185)),
        (0.98, (0.0154, 0.0445, 0.3674)),
        (0.99, (0.0077, 0.0223, 0.1837)),
    ],
)
def test_erk_gives_lenet_the_recorded_densities_and_as_many_weights_as_uniform(
    sparsity: float, densities: tuple[float, ...]
) -> None:
    keep = round((1 - sparsity) * TOTAL)
    counts = erdos_renyi_kernel(LENET, keep)
    found = [counts[name] / shape.numel() for name, shape in LENET.items()]
    assert found == pytest.approx(densities, abs=1e-3)
    sizes = {name: shape.numel() for name, shape in LENET.items()}
    assert sum(counts.values()) == sum(apportioned(sizes, keep, sizes).values()) == keep


def test_erk_counts_the_sides_of_a_convolution_too() -> None:
    """Evci et al. 2020, section 3: 1 - (in + out + width + height) / (in * out * width * height), but for a factor."""
    shapes = {"conv": Size((64, 32, 3, 5)), "linear": Size((200, 400))}
    counts = erdos_renyi_kernel(shapes, 5_000)
    ratio = (counts["conv"] / shapes["conv"].numel()) / (counts["linear"] / shapes["linear"].numel())
    expected = ((64 + 32 + 3 + 5) / (64 * 32 * 3 * 5)) / ((200 + 400) / (200 * 400))
    assert ratio == pytest.approx(expected, rel=1e-3)


def test_layers_that_would_be_more_than_dense_are_dense_and_the_others_share_the_rest() -> None:
    shapes = {"a": Size((2, 2)), "b": Size((10, 10)), "c": Size((100, 100)), "d": Size((200, 100))}
    counts = erdos_renyi_kernel(shapes, 3_000)
    assert counts["a"] == 4
    assert counts["b"] == 100  # only once `a` is full has it more than its share
    assert counts["c"] + counts["d"] == 2_896
    assert counts["c"] / counts["d"] == pytest.approx(200 / 300, abs=1e-3)
    assert erdos_renyi_kernel(shapes, 30_104) == {name: shape.numel() for name, shape in shapes.items()}


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_sparser_round_always_fits_into_what_the_one_before_left(
    sides: list[tuple[int, int]], first: float, second: float
) -> None:
    shapes = {f"layer{place}": Size(side) for place, side in enumerate(sides)}
    sizes = {name: shape.numel() for name, shape in shapes.items()}
    more = round(first * sum(sizes.values()))
    fewer = round(second * more)
    for before, after in (
        (erdos_renyi_kernel(shapes, more), lambda room: erdos_renyi_kernel(shapes, fewer, room)),
        (apportioned(sizes, more, sizes), lambda room: apportioned(sizes, fewer, room)),
    ):
        left = after(before)
        assert sum(before.values()) == more
        assert sum(left.values()) == fewer
        assert all(0 <= left[name] <= before[name] <= sizes[name] for name in shapes)


def test_a_layer_gets_no_more_of_fewer_weights_than_it_has_left() -> None:
    """Hamilton's method alone gives `c` 1 of 11 weights and 2 of 10, the paradox of Alabama."""
    shares, many = {"a": 6, "b": 6, "c": 2}, {"a": 100, "b": 100, "c": 100}
    assert apportioned(shares, 10, many) == {"a": 4, "b": 4, "c": 2}
    before = apportioned(shares, 11, many)
    assert before == {"a": 5, "b": 5, "c": 1}
    assert apportioned(shares, 10, before) == {"a": 5, "b": 4, "c": 1}


def test_counts_are_exact_where_floats_are_not() -> None:
    shares = {"a": 10**16 - 1, "b": 1}
    assert apportioned(shares, 10**16, shares) == shares


def test_a_share_larger_than_its_room_is_refused_with_its_layer() -> None:
    with pytest.raises(ValueError, match="5 weights of 'a' are to be kept, which has 4 left"):
        apportioned({"a": 1, "b": 1}, 10, {"a": 4, "b": 100})
    with pytest.raises(ValueError, match="1000 weights of 'output' are to be kept, which has 999 left"):
        erdos_renyi_kernel(LENET, TOTAL // 10, {"hidden1": 235_200, "hidden2": 30_000, "output": 999})
    with pytest.raises(ValueError, match="11 weights are to be kept where there are 10"):
        apportioned({"a": 1}, 11, {"a": 10})
